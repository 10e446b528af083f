"""Groups of commands whose modules are imported when a command is called, so that ``--help`` answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Final, NamedTuple

import click

from gradless.cli.options import Commands


class Later(NamedTuple):
    """A command that is not imported yet."""

    path: str
    """Module and name in it: ``gradless.cli.plan:plan``."""
    summary: str
    """First sentence of its help; tests compare them."""


class Imported(MutableMapping[str, click.Command]):
    """Commands by name; one that is asked for is imported, and their names are there without that.

    Args:
        later: commands that are not imported yet, by name.
    """

    def __init__(self, later: Mapping[str, Later]) -> None:
        self.later = dict(later)
        self._here: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        """Return a command."""
        if name not in self._here:
            module, _, attribute = self.later[name].path.partition(":")
            self._here[name] = getattr(importlib.import_module(module), attribute)
        return self._here[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        """Add a command that is here already."""
        self._here[name] = command

    def __delitem__(self, name: str) -> None:
        """Forget a command."""
        if name not in self:
            raise KeyError(name)
        self._here.pop(name, None)
        self.later.pop(name, None)

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a command, without importing it."""
        return name in self._here or name in self.later

    def __iter__(self) -> Iterator[str]:
        """Yield all names."""
        return iter({**self.later, **self._here})

    def __len__(self) -> int:
        """Return how many commands there are."""
        return len({**self.later, **self._here})

    def listed(self, name: str) -> click.Command:
        """Return what a list of commands shows of one: the command, or what stands for it until it is imported."""
        return self._here[name] if name in self._here else click.Command(name, help=self.later[name].summary)


class LaterCommands(Commands):
    """A group of which a list needs no command's module.

    Args:
        name: of the group.
        later: its commands that are imported when they are called, by name.
        settings: those of `click.Group`.
    """

    def __init__(self, name: str | None = None, *, later: Mapping[str, Later], **settings: Any) -> None:
        super().__init__(name, Imported(later), **settings)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        assert isinstance(self.commands, Imported)
        listed = {name: self.commands.listed(name) for name in self.commands}
        click.Group(commands=listed).format_commands(ctx, formatter)


OTHERS: Final = {
    "predict": Later(
        "gradless.cli.predict:predict",
        "Label the rows of a file with a tuned model: all their columns, the label, and a probability for each label.",
    ),
    "collab": Later("gradless.cli.collab:collab", "Train with peers who do not trust each other."),
    "peers": Later("gradless.cli.peers:peers", "Train with others over a network without trusting them."),
    "plan": Later(
        "gradless.cli.plan:plan",
        "Say how much memory inference and ways of tuning need, from the model's configuration alone.",
    ),
    "recipe": Later(
        "gradless.cli.recipe:recipe", "Show the settings behind a number of a paper, and the command that runs them."
    ),
    "ledger": Later("gradless.cli.ledger:ledger", "See what is intact in a run's ledger, and repair it."),
    "doctor": Later(
        "gradless.cli.doctor:doctor",
        "Say what this installation can do, test its kernels, and advise. Exit code 1 if something is broken.",
    ),
    "completion": Later(
        "gradless.cli.doctor:completion",
        "Print the script with which a shell completes commands, options, and names of models, tasks, methods...",
    ),
    "list": Later(
        "gradless.cli.listing:list_", "List methods, tasks, models, directions, aggregators and other tables by name."
    ),
}
"""Commands of ``gradless`` itself that have a module of their own."""
