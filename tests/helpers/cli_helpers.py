"""The command line in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from gradless.cli import main


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *parts: str, code: int = 2) -> None:
    """One sentence on stderr, the exit code, no traceback."""
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("gradless: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr, result.stderr


def without(options: list[str], name: str) -> list[str]:
    index = options.index(name)
    return options[:index] + options[index + 2 :]
