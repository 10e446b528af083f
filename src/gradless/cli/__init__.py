"""The command line: ``gradless.cli:main`` is the entry point."""

from gradless.cli.commands import main

__all__ = ["main"]
