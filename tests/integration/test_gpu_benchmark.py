"""benchmarks/gpu.py in its small size, and what the engine imports: it has to run on a bare machine with a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from specfleet.core.extras import missing
from support.pair import ROOT

BARE = ("numpy", "torch", "transformers", "triton")
"""What the machine has, with what they need themselves."""

IMPORTED = """
import sys
import numpy, torch.distributed
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
theirs = {name.partition(".")[0] for name in sys.modules}  # transformers takes what it finds, too
import specfleet.engine, specfleet.engine.leader, specfleet.engine.testing
try:
    import specfleet.engine.triton_attention
except ModuleNotFoundError as error:
    assert error.name == "triton"
import benchmarks.gpu
found = {name.partition(".")[0] for name in sys.modules}
print(*sorted(found - theirs - set(sys.stdlib_module_names)))
"""


def test_the_engine_and_its_benchmark_import_nothing_but_torch_and_its_kind() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, cwd=ROOT, check=True)

    owners, there, ours = metadata.packages_distributions(), needed(BARE), {"specfleet", "models", "benchmarks"}
    found = set(done.stdout.split())
    assert ours <= found
    of = {name: {canonicalize_name(owner) for owner in owners.get(name, ())} for name in found - ours}
    assert {} == {name: owner for name, owner in of.items() if owner and not owner & there}


def needed(names: tuple[str, ...]) -> set[str]:
    """Distributions that these bring, themselves included."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found.add(name)
        with suppress(metadata.PackageNotFoundError):
            wanted = [Requirement(line) for line in metadata.requires(name) or ()]
            todo += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.timeout(600)
def test_the_benchmark_runs_in_a_small_size(tmp_path: Path) -> None:
    """Every part of it, the padded target's identity and the kernel's errors included; times are only there."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    assert 0 == done.returncode, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["figures"] == json.loads(done.stdout.splitlines()[-1])["figures"]
    assert all(bar["ok"] for bar in found["bars"]) and len(found["bars"]) == 2 - missing("triton")
    figures = found["figures"]
    assert figures["parameters"] > 20e6
    assert 0.2 < figures["drafts of 2"]["accepted"] <= 1.0
    for name in ("with graphs", "without graphs"):
        assert figures[f"{name}, 4 x 5: step"]["seconds"] > 0.0
