"""specfleet: one GPU serves many users whose own machines draft. Lossless distributed speculative decoding.

    from specfleet import Client

    with Client("localhost:7700") as client:
        print(client.generate("Once upon a time", max_tokens=64).text)

Importing this package is cheap: each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specfleet.client import (
        AsyncClient,
        AsyncStream,
        Client,
        Health,
        Reply,
        Stream,
        Timing,
        Tls,
    )
    from specfleet.core.errors import (
        AuthenticationFailed,
        Cancelled,
        ConfigurationError,
        ConnectionError_,
        DeadlineExceeded,
        InternalError,
        InvalidRequest,
        ModelLoadError,
        ModelMismatch,
        Overloaded,
        PermissionDenied,
        PositionGap,
        PromptTooLong,
        QuotaExceeded,
        RequestRejected,
        SpecfleetError,
        StreamInterrupted,
        Unavailable,
        UnknownModel,
    )
    from specfleet.core.generation import ChatMessage, Completed, Started, Tokens
    from specfleet.core.types import FinishReason, Mode, ModelInfo, SamplingParams, Speculation, TokenKind, Usage

    __version__: str

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AuthenticationFailed",
    "Cancelled",
    "ChatMessage",
    "Client",
    "Completed",
    "ConfigurationError",
    "ConnectionError_",
    "DeadlineExceeded",
    "FinishReason",
    "Health",
    "InternalError",
    "InvalidRequest",
    "Mode",
    "ModelInfo",
    "ModelLoadError",
    "ModelMismatch",
    "Overloaded",
    "PermissionDenied",
    "PositionGap",
    "PromptTooLong",
    "QuotaExceeded",
    "Reply",
    "RequestRejected",
    "SamplingParams",
    "SpecfleetError",
    "Speculation",
    "Started",
    "Stream",
    "StreamInterrupted",
    "Timing",
    "Tls",
    "TokenKind",
    "Tokens",
    "Unavailable",
    "UnknownModel",
    "Usage",
    "__version__",
]

# Cheapest first: only a name that is in none of the others brings grpc.
_HOMES = ("specfleet.core.errors", "specfleet.core.types", "specfleet.core.generation", "specfleet.client")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'specfleet' has no attribute {name!r}")
    value = _version() if name == "__version__" else _find(name)
    globals()[name] = value
    return value


def _find(name: str) -> Any:
    for home in map(import_module, _HOMES):
        if name in vars(home):
            return vars(home)[name]
    raise AttributeError(f"module 'specfleet' exports {name!r}, and none of {', '.join(_HOMES)} defines it")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("specfleet")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
