"""The commands of ``gradless collab``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from gradless.cli.options import FILE, HELP, PATH, Commands, options
from gradless.errors import BadInput

SEVERAL = ("algorithm", "attack", "byzantine", "split_parameter", "seed")  # a grid, if given more than once
NETWORK = ("delivery", "wait_for", "drop", "slow", "slowness", "deadline")


@click.group("collab", cls=Commands, context_settings=HELP)
def collab() -> None:
    """Train with peers who do not trust each other."""


data_options = options(
    click.option("--dataset", help="mnist, cifar10, digits or folder (of images)."),
    click.option("--data", type=PATH, help="Folder with the files of --dataset or --task."),
    click.option("--split", help="How rows are dealt: gradless list splits."),
    click.option("--split-parameter", type=float, multiple=True, help="Its alpha or gamma; may be repeated."),
    click.option("--seed", type=int, multiple=True, help="May be repeated."),
)


@collab.command()
@click.option("--recipe", help="A published configuration to start from: gradless list recipes.")
@click.option(
    "--comparison", is_flag=True, help="All algorithms, attacks and seeds of the recipe, or those given here."
)
@data_options
@click.option("--peers", type=int, help="n, attackers included.")
@click.option("--byzantine", type=int, multiple=True, help="f, what the rule is told; may be repeated.")
@click.option("--attackers", type=int, help="How many there are; by default f.")
@click.option("--algorithm", multiple=True, help="gradless list algorithms; may be repeated.")
@click.option("--rule", help="Mixing rule in place of the algorithm's, e.g. nnm+trimmed-mean.")
@click.option("--rule-set", "rule_options", multiple=True, help="Option of that rule, e.g. --rule-set radius=2.")
@click.option("--attack", multiple=True, help="gradless list attacks; may be repeated.")
@click.option("--set", "attack_options", multiple=True, help="Option of the attack, e.g. --set strength=1.5.")
@click.option("--delivery", help="all, first or adversarial: who hears whom.")
@click.option("--wait-for", type=int, help="Rows with which a peer goes on.")
@click.option("--drop", type=float, help="Probability that a message is lost.")
@click.option("--slow", type=int, help="So many honest peers are late.")
@click.option("--slowness", type=float, help="How many times later they are.")
@click.option("--deadline", type=float, help="Latest arrival, in mean latencies.")
@click.option("--radius", type=float, help="Of clipping rules.")
@click.option("--net", help="Network for images.")
@click.option("--model", help="A language model instead of --dataset.")
@click.option("--task", help="Its task.")
@click.option("--train", type=FILE, help="Own training rows instead of --task, as for gradless tune.")
@click.option("--test", type=FILE)
@click.option("--template")
@click.option("--label-column")
@click.option("--labels")
@click.option("--num-train", type=int)
@click.option("--num-test", type=int)
@click.option("--scheme", help="What of the language model is tuned.")
@click.option("--freeze", multiple=True, help="Pattern of parameter names to leave alone; may be repeated.")
@click.option("--payload", help="parameters, or coefficients: a few numbers a step.")
@click.option("--method", help="Of the estimate, if coefficients are exchanged: gradless list methods.")
@click.option("--queries", type=int, help="Coefficients of a step.")
@click.option("--eps", type=float)
@click.option("--sync", type=int, help="Steps between exchanges of parameters beside coefficients.")
@click.option("--steps", type=int)
@click.option("--batch-size", type=int)
@click.option("--lr", type=float)
@click.option("--decay", type=float, help="The rate at step t is lr / (t / decay + 1)...")
@click.option("--refresh", type=int, help="...with t rounded down to a multiple of this.")
@click.option("--momentum", type=float)
@click.option("--weight-decay", type=float)
@click.option("--rounds", type=int, help="Mixing rounds of a step.")
@click.option("--eval-every", type=int)
@click.option("--eval-rows", type=int)
@click.option("--device")
@click.option("--out", type=PATH, required=True, help="Run directory; the same one continues a comparison.")
@click.option("--workers", default=1, show_default=True, help="Runs side by side.")
@click.option("--reuse", type=FILE, multiple=True, help="A results.jsonl whose finished runs are not made again.")
def simulate(
    out: Path, recipe: str | None, comparison: bool, workers: int, reuse: tuple[Path, ...], **given: Any
) -> None:
    """Simulate a group of peers.

    \b
    gradless collab simulate --recipe monna-digits --out runs/digits
    gradless collab simulate --recipe monna-mnist --data mnist/ --attack alie --attack foe --out runs/mnist
    gradless collab simulate --recipe monna-mnist --data mnist/ --comparison --out runs/mnist-all
    gradless collab simulate --dataset digits --peers 12 --byzantine 2 --rule nnm+krum --attack ipm --out runs/krum
    """
    from gradless.collab import recipes
    from gradless.collab.config import CollabConfig
    from gradless.collab.simulation import study

    found = recipes.recipe(recipe) if recipe else recipes.Recipe(CollabConfig(), {}, "", "")
    fields, axes = _settings(given)
    if found.needs and fields.get("data") is None:
        raise BadInput(f"the recipe {recipe} needs files: give --data, a folder with {found.needs}")
    if "model" in fields and "dataset" not in fields:
        fields["dataset"] = None
    if fields.get("own"):
        fields["task"] = None
    delivery = {name: fields.pop(name) for name in NETWORK if name in fields}
    if "delivery" in delivery:
        delivery["mode"] = delivery.pop("delivery")
    base = dataclasses.replace(
        found.base, **fields, delivery=dataclasses.replace(found.base.delivery, **delivery)
    )  # fmt: skip
    if comparison and not recipe:
        raise BadInput("--comparison runs what a recipe compares: name one with --recipe (gradless list recipes)")
    found = found._replace(base=base, plain_lr=None if "lr" in fields else found.plain_lr)
    configs = recipes.compared(found, axes) if comparison else recipes.grid(found, axes)
    results = study.run_all(configs, out, recipe=recipe or "", known=reuse, workers=workers)
    if len(results) == 1:
        click.echo(study.outcome(results[0]))
        advice = study.advice(configs[0], results[0])
        if advice:
            click.echo(advice)
    sys.exit(1 if study.failed(results) else 0)


def _settings(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was said on the command line: single settings, and lists of values for a grid."""
    from gradless.runs.config_io import parse_options

    given = {name: value for name, value in given.items() if value is not None and value != ()}
    for name in ("rule_options", "attack_options"):
        if name in given:
            given[name] = parse_options(given[name])
    if "split" in given:
        given.setdefault("split_parameter", (None,))  # that of a recipe belongs to its own split
    if "data" in given:
        given["data"] = str(given["data"].resolve())
    own = {name: given.pop(name) for name in ("train", "test", "template", "label_column", "labels") if name in given}
    if own:
        given = {"num_train": None, "num_test": None, **given}  # own files are used whole
        given["own"] = {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in own.items()}
    axes = {name: list(given.pop(name)) for name in SEVERAL if name in given}
    return given, axes


@collab.command()
@data_options
@click.option("--peers", default=21, show_default=True, help="Honest peers.")
@click.option("--picture", type=PATH, required=True, help="PNG or SVG file.")
def split(picture: Path, peers: int, **given: Any) -> None:
    """Draw who has what: the rows of each class at every peer.

    \b
    gradless collab split --dataset mnist --data mnist/ --split dirichlet-classes --split-parameter 1 --picture who.png
    """
    from gradless.collab.data import picture as split_picture

    for name in ("split_parameter", "seed"):
        if len(given[name]) > 1:
            raise BadInput(f"a picture shows one split: give --{name.replace('_', '-')} once")
        given[name] = given[name][0] if given[name] else None
    click.echo(split_picture.draw(picture, peers=peers, **given))
