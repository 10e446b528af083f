"""Pages: every block runs or is read, every public name has its page, and the site builds without a network."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import docs_blocks
import gradless
from docs_blocks import ROOT, Block

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUNS = ("python", "pycon", "console")


def ids(value: object) -> str:
    return str(value.relative_to(DOCS)) if isinstance(value, Path) else ""


@pytest.mark.parametrize("page", [page for page in PAGES if docs_blocks.blocks(page)], ids=ids)
def test_the_blocks_of_a_page_hold(page, tmp_path, monkeypatch):
    for module in docs_blocks.needs(page):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{page.name} needs {module}, which is not installed")
    monkeypatch.chdir(tmp_path)
    docs_blocks.run_page(page)
