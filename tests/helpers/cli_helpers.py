"""The command line in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from gradless.cli import main


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(found: Result, *parts: str, code: int = 2) -> None:
    """One sentence on stderr, the exit code, no traceback."""
    assert found.exit_code == code, (found.output, found.exception)
    assert found.exception is None or isinstance(found.exception, SystemExit)
    assert found.stderr.startswith("gradless: ")
    assert found.stderr.count("\n") == 1
    assert "Traceback" not in found.output
    for part in parts:
        assert part in found.stderr, found.stderr


def without(options: list[str], name: str) -> list[str]:
    place = options.index(name)
    return options[:place] + options[place + 2 :]
