"""Trainer's hooks that make the optimizer and the schedule, whoever overrides them.

What a class, or the trainer itself, has in place of them runs as it stands; here is what follows: the optimizer becomes
a `Window` with a ledger, at the step of the checkpoint, and so does the schedule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gradless import ledger
from gradless.errors import BadInput
from gradless.gradients import Leaf, Update
from gradless.integrations import argument_checks, checkpoints, method_choice, overrides
from gradless.integrations.window import Window
from gradless.optimizer import ZerothOrder


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's wrapper, if it has one."""
    while not isinstance(optimizer, (Window, ZerothOrder)) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def unused(optimizer: Any) -> Any:
    """Return an optimizer that was put on a trainer before the run, or None if it is that of an earlier run.

    Raises:
        BadInput: it is of another library.
    """
    inner = unwrapped(optimizer)
    if inner is None:
        return None
    opt = method_choice.checked(inner.inner if isinstance(inner, Window) else inner)
    if not opt.t:
        if isinstance(inner, Window):
            inner.clear()  # its run may have been interrupted in its first window
        return inner
    if isinstance(inner, Window):
        return None
    raise BadInput(f"the optimizer has taken {opt.t} steps already, which no ledger holds: make a new one")


def optimizer_hook(trainer: Any) -> Callable[..., Any]:
    """Return ``create_optimizer`` for a run: the trainer's own, then the ledger and the step of the checkpoint."""
    create, author = trainer.create_optimizer, overrides.author(trainer, "create_optimizer")

    def create_optimizer(*args: Any, **rest: Any) -> Window:
        returned = create(*args, **rest)
        optimizer = unwrapped(returned if trainer.optimizer is None else trainer.optimizer)
        if not isinstance(optimizer, (Window, ZerothOrder)):
            raise BadInput(
                f"{author} makes {type(optimizer).__name__}, which needs "
                "gradients: make an optimizer of gradless in it, e.g. gradless.mezo, or choose the method with zo="
            )
        own = optimizer is trainer.own_window
        window = optimizer if isinstance(optimizer, Window) else Window(optimizer, lambda update: None)
        opt = method_choice.checked(window.inner)
        if opt.t:
            raise BadInput(f"the optimizer has taken {opt.t} steps already, which no ledger holds: make a new one")
        method = trainer.zo if own and trainer.given is None else opt
        choice = {**method_choice.describe(method, trainer.zo_options), **trainer.described}
        trainer.ledger = checkpoints.begin(
            Path(trainer.args.output_dir),
            opt,
            trainer.model,
            choice,
            trainer.saved,
            bare=trainer.ledger_only,
            ranks=trainer.shared,
        )
        if trainer.ledger is not None:
            trainer.closing.callback(trainer.ledger.close)
            window.log = _logged(trainer, opt, trainer.ledger)
        trainer.optimizer = trainer.window = window
        return window

    return create_optimizer


def _logged(trainer: Any, opt: ZerothOrder, ledger: ledger.Ledger) -> Callable[[Update], None]:
    """Log a step, unless the ledger could not be read or replayed afterwards."""
    groups, leaves = len(opt.param_groups), opt.leaves
    recorded = checkpoints.recorded_engine(trainer.saved)

    def log(update: Update) -> None:
        nonlocal recorded
        chosen = opt.evaluator.choice
        if chosen is not None and chosen != recorded:  # in this step, before which nobody knew a batch
            ledger.relabel(engine=chosen.to_json())
            recorded = chosen
        if len(update.lrs) != groups:
            raise BadInput(
                f"a parameter group was added after the run began, and its ledger has learning rates of {groups}: add "
                "it in create_optimizer"
            )
        if trainer.ledger_only and opt.leaves is not leaves and _names(opt.leaves) != _names(leaves):
            raise BadInput(
                "weights were frozen or unfrozen after the run began, which a replay of its ledger does not know: "
                "leave ledger_only out, or freeze them before train()"
            )
        ledger.append(update)

    return log


def _names(leaves: Iterable[Leaf]) -> list[str]:
    return [leaf.name for leaf in leaves]


def scheduler_hook(trainer: Any) -> Callable[..., Any]:
    """Return ``create_scheduler`` for a run: the trainer's own, then the step of the checkpoint."""
    create = trainer.create_scheduler

    def create_scheduler(*args: Any, **rest: Any) -> Any:
        returned = create(*args, **rest)
        schedule = returned if trainer.lr_scheduler is None else trainer.lr_scheduler
        trainer.lr_scheduler = schedule
        window = trainer.window
        argument_checks.schedule(schedule)
        scheduled = unwrapped(getattr(schedule, "optimizer", window))
        if scheduled not in (window, window.inner):
            raise BadInput(
                f"the schedule {type(schedule).__name__} is of another optimizer ({type(scheduled).__name__}): make it "
                "for the one that is trained, or leave it out and set lr_scheduler_type"
            )
        if trainer.saved is not None:
            asked = list(getattr(schedule, "base_lrs", ()))
            schedule.load_state_dict(trainer.saved.state["schedule"])
            kept = getattr(schedule, "base_lrs", ())
            if others := [pair for pair in zip(asked, kept, strict=False) if pair[0] != pair[1]]:
                warnings.warn(
                    f"learning_rate is {others[0][0]:g}, and the run goes on with the {others[0][1]:g} of its "
                    "checkpoint: to change it, load the weights of the checkpoint and start a new run",
                    stacklevel=2,
                )
            for group, lr in zip(window.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = lr
        return schedule

    return create_scheduler


def epochs_hook(trainer: Any) -> Callable[..., Any]:
    """Return ``set_initial_training_values`` for a run: no epoch is left where the checkpoint is that of the last step.

    Trainer would take one step more, unless an epoch ends there.
    """
    create = trainer.set_initial_training_values

    def set_initial_training_values(args: Any, *rest: Any, **more: Any) -> Any:
        epochs, steps_of_epoch, *others = create(args, *rest, **more)
        if trainer.saved is not None and 0 < args.max_steps <= trainer.saved.state["step"]:
            epochs = trainer.saved.state["step"] // steps_of_epoch
        return epochs, steps_of_epoch, *others

    return set_initial_training_values


def write_state(trainer: Any, run: Path, folder: Path, *, bare: bool) -> None:
    """Write what continues a run, or rebuilds its weights, beside the weights that the model holds now.

    Raises:
        BadInput: the ledger in the output directory is of a later run of another trainer.
    """
    best = trainer.state.best_model_checkpoint
    if trainer.args.load_best_model_at_end and not trainer.is_in_train and best:
        checkpoints.copy(Path(best), folder)  # the model holds its weights now
        return
    if not trainer.is_in_train and ledger.read(run / checkpoints.LEDGER).crc != trainer.ledger.crc:
        raise BadInput(
            f"{run / checkpoints.LEDGER} is of another run by now, so it does not rebuild these weights: give each "
            "trainer an output_dir of its own"
        )
    checkpoints.write(folder, trainer.window.inner, run, trainer.lr_scheduler, bare=bare)
