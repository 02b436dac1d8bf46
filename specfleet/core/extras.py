"""Is an optional dependency there? Said at once, before anything that takes seconds is imported or done."""

from importlib.util import find_spec


def missing(module: str) -> bool:
    """Whether `module` is not installed. Imports nothing."""
    return find_spec(module) is None


def need(module: str) -> None:
    """Raises ModuleNotFoundError, which the command line explains, if `module` is not installed. Imports nothing."""
    if missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
