"""The weights of a Trainer run from its ledger and the base model, without data or forward passes."""

from __future__ import annotations

from pathlib import Path

import transformers
from torch import nn

from gradless import ledger, plugins
from gradless.errors import BadInput
from gradless.integrations import checkpoints, method_choice
from gradless.optimizer import ZerothOrder
from gradless.system import typed


def rebuild(
    model: nn.Module, folder: str | Path, *, zo: method_choice.Choice | None = None, until: int | None = None
) -> ZerothOrder:
    """Bring the model a run began with to the weights of step ``until``, in place, bit for bit.

    Args:
        model: the base model, as it was handed to the trainer.
        folder: a checkpoint, a saved model or an output directory of `ZOTrainer`; only its ``ledger`` is read.
        zo: the method, if it was a function that gradless does not know by name.
        until: number of steps; by default all of them.

    Returns:
        The optimizer at that step.

    Raises:
        BadInput: no ledger, a damaged one, another model, too few steps, or steps that do not tell the whole run.
    """
    contents = ledger.read(Path(folder) / checkpoints.LEDGER)
    if "trainer" not in contents.header:
        raise BadInput(f"{folder} was not written by a Trainer: use the command gradless replay")
    chosen = contents.header["trainer"]
    if zo is None:
        recorded = typed.value("plugins", chosen.get("plugins", {}), dict[str, str])
        plugins.check({"methods": [str(chosen["method"])]}, recorded)
    if until is not None and not 0 <= until <= len(contents.moves):
        raise BadInput(f"the ledger of {folder} holds {len(contents.moves)} steps: until={until} is out of reach")
    make = method_choice.check(zo or chosen["method"], chosen["options"])
    # Parameters that decay are told from the others by their names and modules alone, so no trainer is needed.
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)
    named = method_choice.groups(model, decayed, max(contents.header["weight_decay"]))
    opt = method_choice.checked(make(named, **{"seed": contents.header["seed"], **chosen["options"]}))
    for name in (Path(folder), Path(folder).parent):
        checkpoints.put_initial(name, opt)
    checkpoints.check_base(contents.header, checkpoints.header(opt, model, chosen), folder)
    opt.replay(contents.moves[:until])
    checkpoints.check_weights(Path(folder), opt)
    return opt
