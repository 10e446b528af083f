"""The command ``gradless list``."""

from __future__ import annotations

import click

from gradless.cli.completion import Named
from gradless.cli.options import plugin_option
from gradless.errors import BadInput, unknown
from gradless.system import terminal


@click.command("list")
@click.argument("what", type=Named("list"))
@plugin_option
def list_(what: str) -> None:
    """List methods, tasks, models, directions, aggregators and other tables by name.

    Tables: methods, schemes, tasks, rewards, models, objectives; directions, estimators, rules; aggregators, attacks,
    algorithms, splits, recipes.

    \b
    gradless list tasks
    """
    from gradless import plugins
    from gradless.collab import recipes
    from gradless.runs import jobs

    tables = {**jobs.TABLES, **recipes.TABLES}
    if what not in tables:
        raise BadInput(unknown("list", what, tables))
    rows = plugins.listed(what, tables[what]())
    width = max(len(name) for name in rows)
    for name, about in rows.items():
        terminal.say(f"{name:<{width}}  {about}")
