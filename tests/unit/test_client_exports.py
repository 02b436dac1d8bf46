"""What `import specfleet` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

import pytest

import specfleet

PUBLIC = """
AsyncClient AsyncStream AuthenticationFailed Cancelled ChatMessage Client Completed ConfigurationError
ConnectionError_ DeadlineExceeded FinishReason Health InternalError InvalidRequest Mode ModelInfo ModelLoadError
ModelMismatch Overloaded PermissionDenied PositionGap PromptTooLong QuotaExceeded Reply RequestRejected
SamplingParams SpecfleetError Speculation Started Stream StreamInterrupted Timing Tls TokenKind Tokens Unavailable
UnknownModel Usage __version__
""".split()  # noqa: SIM905


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_public_names() -> None:
    """The public surface is exactly this; changing it is a decision."""
    assert specfleet.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(specfleet))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there(name: str) -> None:
    """Every public name can be imported, and is the thing of that name."""
    value = getattr(specfleet, name)

    assert name == getattr(value, "__name__", name)


def test_unknown_names_are_attribute_errors() -> None:
    """A name that is not exported is an AttributeError, as hasattr() needs it."""
    assert not hasattr(specfleet, "Cleint")
    assert not hasattr(specfleet, "field")


def test_typed() -> None:
    """The distribution says that it has types."""
    assert (files("specfleet") / "py.typed").is_file()


def test_import_is_light() -> None:
    """`import specfleet`, its errors and SamplingParams bring neither grpc nor anything heavier."""
    heavy = python(
        "import specfleet, sys; specfleet.SpecfleetError, specfleet.SamplingParams, specfleet.Tokens;"
        "print({'grpc', 'google', 'torch', 'numpy', 'pydantic', 'asyncio'} & set(sys.modules))"
    )

    assert heavy == "set()"


def test_client_needs_grpc_and_protobuf_only() -> None:
    """The SDK imports nothing that a base install does not bring."""
    own = "specfleet|grpc|google|cython_runtime"
    foreign = python(
        "import sys; from specfleet import Client, AsyncClient; import re;"
        "tops = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names);"
        f"print(sorted(name for name in tops if not re.match('_|typing_extensions|{own}', name)))"
    )

    assert foreign == "[]"


def test_import_is_fast() -> None:
    """`import specfleet` takes under 150 ms (median of five)."""
    program = "import time; t = time.perf_counter(); import specfleet; print(time.perf_counter() - t)"

    assert sorted(float(python(program)) for _ in range(5))[2] < 0.150
