"""Runs the examples at the top of modules, so that what the documentation shows is what works."""

import doctest
import textwrap
from types import ModuleType


def code_block(module: ModuleType) -> str:
    """Return the code after `Example::` in the docstring of a module."""
    _, found, block = (module.__doc__ or "").partition("Example::\n")
    assert found, f"{module.__name__} shows no example"
    return textwrap.dedent(block).strip() + "\n"


def failed_doctests(module: ModuleType) -> int:
    """Run the doctests of a module and return how many failed; there must be some."""
    result = doctest.testmod(module)
    assert result.attempted, f"{module.__name__} shows no example"
    return result.failed
