"""Tables, loaded plugins and modules as they were, after each test."""

from __future__ import annotations

import sys

import pytest

from plugin_helpers import Written, tables_as_before


@pytest.fixture(autouse=True)
def nothing_stays():
    with tables_as_before():
        yield
    for name in [name for name in sys.modules if name.startswith(("gradless_plugin", "theirs", "others"))]:
        del sys.modules[name]


@pytest.fixture
def written(tmp_path) -> Written:
    return Written(tmp_path)
