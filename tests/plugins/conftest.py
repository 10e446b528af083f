"""Tables, loaded plugins and modules as they were, after each test."""

from __future__ import annotations

import sys

import pytest

from gradless.plugins import TABLES
from gradless.plugins.loading import LOADED
from gradless.plugins.tables import rows_of
from plugin_helpers import Written


@pytest.fixture(autouse=True)
def nothing_stays():
    tables = {table: dict(rows_of(table)) for table in TABLES}
    modules = set(sys.modules)
    yield
    LOADED.clear()
    for table, old in tables.items():
        rows_of(table).clear()
        rows_of(table).update(old)
    for name in [name for name in sys.modules if name not in modules and not name.startswith("gradless.")]:
        if name.startswith(("gradless_plugin", "theirs")):
            del sys.modules[name]


@pytest.fixture
def written(tmp_path) -> Written:
    return Written(tmp_path)
