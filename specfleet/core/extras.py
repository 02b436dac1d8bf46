"""Is an optional dependency there? Said at once, before anything that takes seconds is imported or done."""

from importlib.util import find_spec


def need(module: str) -> None:
    """Raises ModuleNotFoundError, which the command line explains, if `module` is not installed. Imports nothing."""
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
