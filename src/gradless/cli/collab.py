"""The commands of ``gradless collab``."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
from msgspec import Meta

from gradless.cli import ends
from gradless.cli.completion import Named
from gradless.cli.fields import of_fields, of_hint
from gradless.cli.options import FILE, HELP, PATH, Commands, SomeRepeat, cluster_option, note_unused, plugin_option
from gradless.collab.config import CollabConfig
from gradless.collab.network.delivery import Delivery
from gradless.errors import BadInput
from gradless.runs.config import OwnFiles
from gradless.system import terminal
from gradless.system.typed import Amount, Processes

SEVERAL = ("algorithm", "attack", "byzantine", "topology", "degree", "split_parameter", "seed")  # a grid, if repeated
NETWORK = "mode wait_for drop slow slowness deadline"
OWN_FILES = "train test template label_column labels delimiter encoding"


def _options(names: str) -> Callable:
    """Options without defaults, for a recipe may have its own; the help names those without a recipe."""
    return of_fields(CollabConfig, names, defaults=False, told=True, several=SEVERAL)


@click.group("collab", cls=Commands, context_settings=HELP)
def collab() -> None:
    """Train with peers who do not trust each other."""


data_options = _options("dataset data image_size split split_parameter seed")


@collab.command(cls=SomeRepeat)
@click.option(
    "--recipe", type=Named("recipe"), help="Values to start from in place of the defaults below: gradless list recipes."
)
@click.option(
    "--comparison", is_flag=True, help="All algorithms, attacks and seeds of the recipe, or those given here."
)
@data_options
@_options("peers byzantine attackers algorithm rule rule_options memory attack attack_options")
@of_fields(Delivery, NETWORK, defaults=False, told=True)
@_options("topology degree radius net model task")
@of_fields(OwnFiles, OWN_FILES, defaults=False)
@_options("num_train num_test chat reward reward_weight reward_timeout pass_reward max_new_tokens stop temperature")
@_options("scheme freeze payload method method_options queries eps sync steps batch_size lr decay refresh momentum")
@_options("weight_decay rounds eval_every eval_rows device")
@click.option("--out", type=PATH, required=True, help="Run directory; the same one continues a comparison.")
@of_hint("workers", Processes | None, "Runs side by side (1; on a cluster as many as have room).")
@cluster_option
@plugin_option
@click.option("--reuse", type=FILE, multiple=True, help="A results.jsonl whose finished runs are not made again.")
@ends.json_option
def simulate(
    out: Path,
    recipe: str | None,
    comparison: bool,
    workers: int | None,
    on: str | None,
    reuse: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Simulate a group of peers.

    Own images lie at CLASS/NAME.png, or at train/CLASS/NAME.png and test/CLASS/NAME.png, in a folder or an archive;
    without a test part every fifth of a class is for testing. An .npz file holds x_train, y_train, x_test and y_test,
    or x and y: images [N, H, W] or [N, H, W, C], or features [N, D]. The network takes their shape and number of
    classes.

    \b
    gradless collab simulate --recipe monna-digits --out runs/digits
    gradless collab simulate --recipe monna-mnist --data mnist/ --attack alie --attack foe --out runs/mnist
    gradless collab simulate --recipe monna-mnist --data mnist/ --comparison --out runs/mnist-all
    gradless collab simulate --dataset digits --peers 12 --byzantine 2 --rule nnm+krum --attack ipm --out runs/krum
    gradless collab simulate --topology torus --peers 16 --algorithm bridge --attack alie --out runs/torus
    gradless collab simulate --dataset folder --data scans/ --image-size 32 --attack alie --out runs/scans
    gradless collab simulate --dataset npz --data scans.npz --net mlp --attack alie --out runs/arrays
    """
    from gradless.cli import other_ends
    from gradless.collab.simulation import study
    from gradless.system.signals import interrupting

    configs, named = _configurations(recipe, comparison, options)
    ends.remember(click.get_current_context(), lambda error: other_ends.stopped_simulation(out, error))
    with interrupting(signal.SIGTERM):
        results = study.run_all(configs, out, recipe=recipe or "", known=reuse, named=named, workers=workers, on=on)
    plain = [study.outcome(results[0])] if len(results) == 1 else []
    if len(results) == 1 and (advice := study.advice(configs[0], results[0])):
        plain.append(advice)
        if terminal.live() and not as_json:
            terminal.say(advice)
    ends.tell(
        lambda: other_ends.simulation(results, len(configs), out),
        plain=plain,
        values=other_ends.simulation_values(results, len(configs)),
        as_json=as_json,
    )
    sys.exit(1 if study.failed(results) else 0)


def _configurations(
    recipe: str | None, comparison: bool, options: dict[str, Any]
) -> tuple[list[CollabConfig], list[str]]:
    """Return the configurations of all runs, and the names of the settings that were given.

    Raises:
        BadInput: a comparison without a recipe, or a recipe without the files that it needs.
    """
    from gradless.collab import recipes

    if comparison and not recipe:
        raise BadInput("--comparison runs what a recipe compares: name one with --recipe (gradless list recipes)")
    start = recipes.recipe(recipe) if recipe else recipes.Recipe(CollabConfig(), {}, "", "")
    options = {name: value for name, value in options.items() if value is not None and value != ()}
    delivery = {name: options.pop(name) for name in NETWORK.split() if name in options}
    axes = {name: list(options.pop(name)) for name in SEVERAL if name in options}
    repeated = [*axes]
    if "split" in options:
        axes.setdefault("split_parameter", [None])  # that of a recipe belongs to its own split
    if "topology" in axes:
        axes["topology"] = [_graph_file(one) for one in axes["topology"]]
        axes.setdefault("degree", [None])  # likewise
    options = _own_data(options, start.base.dataset)
    named = [*repeated, *delivery, *("own" if name in OWN_FILES.split() else name for name in options)]
    fields = _fields(options)
    if "eval_every" not in fields and fields.get("steps", 10**9) <= start.base.eval_every:
        fields["eval_every"] = max(1, fields["steps"] // 5)  # one evaluation shows no course
    if start.needs and "data" not in fields:
        raise BadInput(f"the recipe {recipe} needs files: give --data, a folder with {start.needs}")
    base = dataclasses.replace(start.base, **fields, delivery=dataclasses.replace(start.base.delivery, **delivery))
    start = start._replace(base=base, plain_lr=None if "lr" in fields else start.plain_lr)
    configs = recipes.compared(start, axes) if comparison else recipes.grid(start, axes)
    note_unused({table: [one for config in configs for one in config.parts()[table]] for table in configs[0].parts()})
    return configs, named


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    """Return fields of the configuration from the options that were given, with absolute paths."""
    from gradless.cli.configuration import whole_rewards
    from gradless.runs.config_io import parse_options
    from gradless.tasks import hub
    from gradless.tasks.sources import absolute

    fields = {name: absolute(value) if isinstance(value, Path) else value for name, value in options.items()}
    for name in ("rule_options", "attack_options", "method_options"):
        if name in fields:
            fields[name] = parse_options(fields[name])
    if "reward" in fields:
        fields["reward"] = whole_rewards(fields["reward"])
    own = {name: hub.pinned(fields.pop(name)) for name in OWN_FILES.split() if name in fields}
    if own:
        fields = {"num_train": None, "num_test": None, **fields, "own": own, "task": None}  # own files are used whole
    if "model" in fields:
        fields.setdefault("dataset", None)
    return fields


def _graph_file(topology: str) -> str:
    """Return the absolute path of a graph's file, so that a run can be continued from anywhere; a name as it is."""
    from gradless.collab.network.topology import TOPOLOGIES

    return topology if topology in TOPOLOGIES or not Path(topology).is_file() else str(Path(topology).resolve())


def _own_data(options: dict[str, Any], known: str | None) -> dict[str, Any]:
    """Return options with the data set that --data alone means: a folder of images or an .npz file.

    Args:
        options: that were given.
        known: the data set that they would be for; files of one that needs them are its own.
    """
    from gradless.collab.data.datasets import needs_files

    alone = "data" in options and not {"dataset", "model", "task"} & set(options)
    if not alone or known is None or needs_files(known):
        return options
    return {**options, "dataset": "npz" if options["data"].suffix == ".npz" else "folder"}


@collab.command()
@data_options
@of_hint("peers", Annotated[int, Meta(ge=1, le=10**4)], "n, attackers included.", 21)
@of_hint("byzantine", Amount, "Of them attackers, who have no rows.", 0)
@click.option("--picture", type=FILE, required=True, help="PNG or SVG file.")
@plugin_option
def split(picture: Path, peers: int, byzantine: int, **options: Any) -> None:
    """Draw who has what: the rows of each class at every peer.

    \b
    gradless collab split --dataset mnist --data mnist/ --split dirichlet-classes --split-parameter 1 --picture who.png
    """
    from gradless.collab.data import picture as split_picture

    for name in ("split_parameter", "seed"):
        if len(options[name]) > 1:
            raise BadInput(f"a picture shows one split: give --{name.replace('_', '-')} once")
        options[name] = options[name][0] if options[name] else None
    options = _own_data({name: value for name, value in options.items() if value is not None}, "digits")
    terminal.say(split_picture.draw(picture, peers=peers, byzantine=byzantine, **options))
