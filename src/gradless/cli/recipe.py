"""The command ``gradless recipe``."""

from __future__ import annotations

import click

from gradless.cli.completion import Named
from gradless.errors import BadInput
from gradless.system import terminal


@click.command("recipe")
@click.argument("name", type=Named("published"), required=False)
@click.option("--print", "printed", is_flag=True, help="Print its file for tune, bench or eval, or its command alone.")
@click.option("--single", is_flag=True, help="With --print: the first point of a grid, as a file for tune.")
def recipe(name: str | None, printed: bool, single: bool) -> None:
    """Show the settings behind a number of a paper, and the command that runs them.

    Without NAME it lists the tables, with the beginning of a name the recipes below it.

    \b
    gradless recipe mezo/table1
    gradless recipe mezo/table1/sst2-mezo
    gradless recipe mezo/table1/sst2-mezo --print > recipe.toml
    gradless bench recipe.toml --out runs/sst2 --dry-run
    """
    from gradless.runs import recipes
    from gradless.runs.recipes import written

    if single and not printed:
        raise BadInput("--single says what --print prints: add --print")
    if printed:
        if name is None:
            raise BadInput("--print needs the name of a recipe: gradless recipe lists them")
        click.echo(written.file(recipes.get(name), single=single), nl=False)
        return
    if name is None:
        _columns({folder: f"{len(some):>3}  {recipes.FOLDERS[folder]}" for folder, some in recipes.sections().items()})
    elif name not in recipes.recipes() and (some := recipes.below(name)):
        _columns({one.name: f"{one.about}{f': {written.published(one)}' if one.published else ''}" for one in some})
    else:
        for line in written.about(recipes.get(name)):
            terminal.say(line)


def _columns(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, about in rows.items():
        terminal.say(f"{name:<{width}}  {about}")
