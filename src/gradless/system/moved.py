"""Import paths of 0.1 that changed: an old path says where its names live now, and a few old paths still work."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importing the real one takes as long as all options of the command line

ALIASES = {"recipes": "collab.recipes"}
# New package: its modules by old path; ``old=new`` where the name of the file changed as well.
PACKAGES = {
    "": "moves=gradients",
    "bench": "bench.nursery=forkserver bench.place=directory bench.toml=grid_file",
    "cli": ("collab_cli=collab commands=options completion demo doctor=diagnosis doctor_cli=doctor plan_cli=plan"),
    "collab": "collab.measure=contraction",
    "collab.adversary": (
        "collab.equivocation=equivocating collab.identical=identical collab.mimicry=mimic collab.scene=base "
        "collab.strength=line_search"
    ),
    "collab.aggregation": (
        "collab.columns=coordinate_rules collab.compiled=numba_kernels collab.crowds=span_rules "
        "collab.geometry=gram collab.mixes=pre_aggregators collab.rules=rules collab.spans=span_rules "
        "collab.stages=base collab.sweeps=passes collab.views=receivers"
    ),
    "collab.data": (
        "collab.datasets=datasets collab.image_files=image_files collab.split_picture=picture collab.splits=splits"
    ),
    "collab.learners": (
        "collab.language=language collab.nets=nets collab.shares=assignment "
        "collab.stacked=stacked collab.vision=vision collab.zeroth=coefficients"
    ),
    "collab.network": "collab.transport=simulated collab.network.protocol=exchange",
    "collab.simulation": (
        "collab.build=build collab.course=progress collab.processes=workers collab.simulate=simulate collab.study=study"
    ),
    "cost": (
        "blueprints=meta_models eager_mezo footprint plan plots=figures profiling=profile shares=time_shares workload"
    ),
    "directions": "masks subsets=blocks",
    "forward": (
        "ahead=read_order copies=batched cost.live_memory=live_memory deferred derivatives=autodiff "
        "landscape=evaluator layers=model_blocks leaves=parameters live=live_memory points prefix=prefix_cache "
        "streaming=perturbed thin=low_rank"
    ),
    "integrations": "integrations.checks=argument_checks integrations.choice=method_choice",
    "kernels": "kernels.tiles=numba_tiles",
    "lm": (
        "assets batching encode evaluate gguf_convert=gguf metrics model_config=checkpoint_config objectives "
        "schemes scoring shapes sharing=token_trees tiny=tiny_models"
    ),
    "methods": "methods.frontier=recent scales=layer_scales",
    "report": "report.run_report=run",
    "report.bench": (
        "report.best=selection report.choice=selection report.figures=figures report.page=page "
        "report.study=study report.tables=tables report.views=budgets"
    ),
    "report.collab": (
        "report.collab_curves=curves report.collab_heatmaps=heatmaps "
        "report.collab_names=names report.collab_page=page report.collab_tables=tables"
    ),
    "report.common": "report.files=read report.layout=label_layout report.style=page report.table=table",
    "report.run": (
        "report.run_figures=figures report.run_page=page report.run_record=record report.run_tables=tables "
        "report.run_verdict=verdict"
    ),
    "rules": "moments=stored muon signs=normalise",
    "runs": (
        "card cluster=torchrun command_line=config_io config config_file=config_io hub jobs notes=record "
        "outcome=finish predictions run=build saving=save trackers=tensorboard train"
    ),
    "system": ("cache claims=locks hashing memory=peak_memory packing=tensor_state progress reuse=finished_runs"),
}


def moved() -> dict[str, str]:
    """Today's path of every module by its old one, both below ``gradless``."""
    table = {}
    for package, names in PACKAGES.items():
        for name in names.split():
            old, _, new = name.partition("=")
            table[old] = f"{package}.{new or old}".removeprefix(".")
    return table


class Finder(Loader):
    """Answers for paths that no other finder knows: it stands last in `sys.meta_path`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of an alias, or None for a path that never existed.

        Raises:
            ModuleNotFoundError: the path is an old one; the message names the new one.
        """
        package, _, name = fullname.partition(".")
        if package != "gradless":
            return None
        if name in ALIASES:
            return ModuleSpec(fullname, self)
        new = moved().get(name)
        if new is None:
            return None
        raise ModuleNotFoundError(f"{fullname} is now gradless.{new}: import it from there", name=fullname)

    def create_module(self, _: ModuleSpec) -> ModuleType | None:
        """Leave it to the import system."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module that an alias stands for in its place."""
        target = ALIASES[module.__name__.partition(".")[2]]
        sys.modules[module.__name__] = importlib.import_module(f"gradless.{target}")


def install() -> None:
    """Let imports ask a `Finder` when all others have failed."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
