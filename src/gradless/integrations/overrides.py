"""What a trainer's own classes override, and whether forward passes can do it.

`ZOTrainerMixin` runs every override of ``training_step`` that ends in Trainer's; only Trainer's backward pass is left
out. So what is refused here is little: overrides that use gradients, and losses whose value is not what they train.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import transformers

from gradless.errors import BadInput

GRADIENTS: Final = {"backward", "grad", "autograd"}  # attributes that only backpropagation fills
LOOPS: Final = ("training_step", "compute_loss", "train", "_inner_training_loop", "_run_epoch")
# Methods that make an optimizer with gradients, which no run asks for.
UNUSED: Final = {"get_optimizer_cls_and_kwargs": "choose the method with zo=, or override create_optimizer"}
ITSELF: Final = (
    "its loss compares the model with itself at the same weights (exp(logp - logp.detach()) is 1 everywhere), or "
    "weighs it by detached values, so that only gradients see what it trains"
)
# Losses of TRL whose value along a direction is not what their gradient trains, by class.
SURROGATES: Final = {
    "GRPOTrainer": f"{ITSELF}: use gradless.integrations.rewards.ZORewardTrainer, which takes the same reward_funcs",
    "SDPOTrainer": f"{ITSELF}: use RLOOTrainer or DistillationTrainer",
    "SDFTTrainer": f"{ITSELF}: use DistillationTrainer",
    "IWOPDTrainer": f"{ITSELF}: use DistillationTrainer",
}
# The same by an argument: (class, argument, values, what to set).
SURROGATE_ARGUMENTS: Final = (
    ("SFTTrainer", "loss_type", ("dft",), "loss_type='nll'"),
    ("DPOTrainer", "use_weighting", (True,), "use_weighting=False"),
)
BASELINE: Final = "KTOTrainer"  # its baseline is a constant to gradients, but moves with the weights


def classes(trainer: type, own: type) -> list[type]:
    """Return the classes of a trainer that are neither Trainer's, nor above it, nor of this package."""
    ours = {base for base in trainer.__mro__ if base.__module__.split(".")[0] == own.__module__.split(".")[0]}
    return [base for base in trainer.__mro__ if base not in transformers.Trainer.__mro__ and base not in ours]


def check(trainer: type, own: type) -> None:
    """Refuse a class of trainers that cannot be trained with forward passes.

    Args:
        trainer: the class.
        own: the mixin, whose methods are not looked at.

    Raises:
        BadInput: with the class and the method at fault, and what to do.
    """
    for base in classes(trainer, own):
        reason = SURROGATES.get(base.__name__) if is_of_trl(base) else None
        if reason is not None:
            raise BadInput(f"{base.__name__} does not go with ZOTrainer: {reason}")
        for name in LOOPS:
            used = _gradients(vars(base).get(name))
            if used:
                raise BadInput(
                    f"{base.__name__}.{name} uses gradients ({', '.join(used)}), and there are none: override "
                    "compute_loss or _prepare_inputs without them, in a subclass of ZOTrainer"
                )
        for name, fix in UNUSED.items():
            if name in vars(base):
                raise BadInput(f"{base.__name__}.{name} would have no effect in ZOTrainer: {fix}")
        if is_of_trl(base) and base.__name__ == BASELINE:
            warnings.warn(
                "KTOTrainer takes its KL baseline as a constant, and so do gradients; the slopes of forward passes are "
                "of the whole loss, baseline included",
                stacklevel=4,
            )


def check_arguments(trainer: type, values: Iterable[Any]) -> None:
    """Refuse arguments of TRL that make a loss a stand-in for what it trains.

    Args:
        trainer: the class.
        values: what it is made from, its training arguments among them.

    Raises:
        BadInput: with the argument.
    """
    names = {base.__name__ for base in trainer.__mro__ if is_of_trl(base)}
    for args in values:
        for name, argument, refused, fix in SURROGATE_ARGUMENTS:
            value = getattr(args, argument, None) if isinstance(args, transformers.TrainingArguments) else None
            options = value if isinstance(value, list) else [value]
            if name in names and any(option in refused for option in options):
                raise BadInput(
                    f"{argument}={value!r} of {name} does not go with ZOTrainer, since the loss is weighed by detached "
                    f"values, so that only gradients see what it trains: set {fix}"
                )


def author(trainer: Any, name: str) -> str:
    """Return who defines a method of a trainer, for a sentence: ``Class.method``."""
    if name in vars(trainer):
        return f"the trainer's own {name}"
    own = __name__.split(".")[0]
    kinds = [base for base in type(trainer).__mro__ if name in vars(base) and base.__module__.split(".")[0] != own]
    base = type(trainer) if not kinds or kinds[0] is transformers.Trainer else kinds[0]
    return f"{base.__name__}.{name}"


def is_of_trl(base: type) -> bool:
    """Return whether a class is defined by TRL."""
    return base.__module__.split(".")[0] == "trl"


def of_trl(trainer: type) -> bool:
    """Return whether a trainer is one of TRL's, which read ``model.training``."""
    return any(map(is_of_trl, trainer.__mro__))


def _gradients(function: Callable[..., Any] | None) -> list[str]:
    """Attributes of backpropagation in a function's source; none where there is no source to read."""
    if function is None:
        return []
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return []
    return sorted(set(_attributes(tree)) & GRADIENTS)


def _attributes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
