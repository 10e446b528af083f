"""Shared by the tests of collaborative learning."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from unittest.mock import MagicMock

import pytest

STUBS = ("torchvision", "torchvision.datasets", "torchvision.transforms", "matplotlib", "matplotlib.pyplot", "seaborn")


class Anything(types.ModuleType):
    """A module in which every name is there: ByzFL imports plots and data sets that aggregation does not need."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


@pytest.fixture(scope="session")
def byzfl():
    """The ByzFL library, with stand-ins for absent libraries that it draws and loads images with."""
    if importlib.util.find_spec("byzfl") is None:
        pytest.skip("ByzFL is not installed: pip install --no-deps byzfl==0.0.11, and scipy")
    absent = [name for name in STUBS if importlib.util.find_spec(name.split(".")[0]) is None]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in absent:
            patch.setitem(sys.modules, name, Anything(name))
        try:
            import byzfl
        except ImportError as error:
            pytest.skip(f"ByzFL cannot be imported: {error}")
    return byzfl
