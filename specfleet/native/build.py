"""Compiles MODULES. Needs mypyc, setuptools and a C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from specfleet.core.errors import ConfigurationError
from specfleet.native import MODULES, PACKAGES, ROOT, folder, is_compiled, source

SETUP = """
import sys
from setuptools import setup
from mypyc.build import mypycify

work, out, *paths = sys.argv[1:]
options = ["--config-file=", "--cache-dir", work + "/mypy", "--follow-untyped-imports"]
modules = mypycify(options + paths, opt_level="3", debug_level="0", multi_file=True, group_name="specfleet", target_dir=work)
arguments = ["--quiet", "build_ext", "--build-lib", out, "--build-temp", work + "/objects", "--parallel", "2"]
setup(name="specfleet-native", packages=[], py_modules=[], ext_modules=modules, script_args=arguments)
"""
SHOWN = 3
"""Lines of a compiler's output that an error tells."""


def missing() -> str | None:
    """What has to be installed before anything can be compiled, as the end of a sentence."""
    if not (find_spec("mypyc") and find_spec("setuptools")):
        return "mypyc: pip install 'specfleet[native]'"
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if not any(map(shutil.which, (named.split()[0], "cc"))):
        return "a C compiler (gcc or clang)"
    return None


def compile_modules() -> Path:
    """Compile what is not compiled yet; takes about a minute. Returns where it is.

    Raises:
        ConfigurationError: something is missing, the compiler failed, or the cache cannot be written to.
    """
    wanted = folder()
    if is_compiled():
        return wanted
    if lacking := missing():
        raise ConfigurationError(f"compiling needs {lacking}; without it the scheduler runs as Python")
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.parent) as work:
            _compile(Path(work)).rename(wanted)
    except OSError as error:
        if not is_compiled():  # else somebody else was faster
            raise ConfigurationError(
                f"cannot write to {wanted.parent}: {error.strerror or error}; XDG_CACHE_HOME names another place"
            ) from None
    return wanted


def _compile(work: Path) -> Path:
    """All modules, within `work`; returns the folder that holds them. Sources are copied there: what else is beside them, such
    as everything in site-packages, would hide mypy's own."""
    out, sources = work / "out", work / "sources"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    paths = [str(source(module).relative_to(ROOT)) for module in MODULES]
    done = subprocess.run(
        [sys.executable, "-c", SETUP, str(work), str(out), *paths],
        cwd=sources,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        said = "; ".join(done.stdout.strip().splitlines()[-SHOWN:])
        raise ConfigurationError(f"the scheduler could not be compiled, and runs as Python: {said}")
    return out
