"""The examples in the docstrings run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fastloss

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["fastloss"] + [
    module.name
    for module in pkgutil.walk_packages(fastloss.__path__, "fastloss.")
    # Compiled kernels hold no examples; __main__ is the command line.
    if "._kernels." not in module.name and not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if "pip install 'fastloss[" not in str(error):
            raise
        pytest.skip(str(error))
    assert doctest.testmod(module, optionflags=OPTIONS).failed == 0


@pytest.mark.parametrize("name", sorted(fastloss.__all__))
def test_public_names_are_documented(name):
    docstring = getattr(fastloss, name).__doc__ or ""
    assert len(docstring.strip().splitlines()[0]) > 20
    made = getattr(fastloss, name)
    if not (isinstance(made, type) and issubclass(made, tuple)):  # shown by what returns them
        assert ">>>" in docstring
