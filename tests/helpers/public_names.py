"""Every public name of the package and the function, class or value behind it."""

from __future__ import annotations

import importlib
from typing import Any

import gradless


def public() -> dict[str, Any]:
    """Public names in the order of their homes."""
    homes = [importlib.import_module(f"gradless.{home}") for home in gradless._HOMES]
    return {name: getattr(home, name) for home in homes for name in home.__all__}
