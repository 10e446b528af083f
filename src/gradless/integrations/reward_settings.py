"""What a run on rewards takes from a trainer's arguments: plain ones, or those of TRL's `GRPOConfig`."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from gradless.errors import BadInput, real, whole
from gradless.methods import METHODS
from gradless.methods.recent import es

COMPLETION_LENGTH: Final = 256
MOST_TOKENS: Final = 10**6

SAMPLING: Final = "texts are sampled by temperature alone"
# Arguments of GRPOConfig that would change what is trained or how texts are made: refused unless they are as usual.
REFUSED: Final = {
    "beta": "there is no reference model: leave the penalty out, or put it into a reward function",
    "top_p": SAMPLING,
    "top_k": SAMPLING,
    "min_p": SAMPLING,
    "repetition_penalty": SAMPLING,
    "generation_kwargs": SAMPLING,
    "use_vllm": "members of a population are copies of the weights in this process: leave it out",
    "use_transformers_continuous_batching": "all members decode in one batch already: leave it out",
    "mask_truncated_completions": "every completion counts: give those that are cut off no reward (None)",
    "multi_objective_aggregation": "rewards are added up, then shaped: leave it out",
    "model_init_kwargs": "the model is loaded by gradless.lm.load: load it yourself, and hand it over",
    "quantization_config": "load the model yourself, and hand it over",
}
# Those that mean nothing here, and do no harm.
IDLE: Final = {
    "num_iterations": "a population is used for one step",
    "steps_per_generation": "a population is used for one step",
    "epsilon": "there is no ratio to clip",
    "epsilon_high": "there is no ratio to clip",
    "delta": "there is no ratio to clip",
    "loss_type": "there is no loss of tokens",
    "importance_sampling_level": "there is no ratio to weigh by",
    "scale_rewards": "rewards are shaped by zo_options={'shaping': ...}",
    "num_generations_eval": "evaluation decodes greedily, once for each prompt",
    "entropy_coef": "there is no loss of tokens",
    "use_adaptive_entropy": "there is no loss of tokens",
    "top_entropy_quantile": "there is no loss of tokens",
    "off_policy_mask_threshold": "a population is used for one step",
    "router_aux_loss_coef": "there is no loss of tokens",
    "use_bias_correction_kl": "there is no reference model",
    "sync_ref_model": "there is no reference model",
    "log_completions": "predict() returns completions",
}


class RewardSettings(NamedTuple):
    """How completions are made and weighed."""

    new_tokens: int
    temperature: float
    weights: tuple[float, ...]
    template_options: Mapping[str, Any]
    """Of the tokenizer's chat template."""
    stops: tuple[str, ...]
    """Texts that end a completion."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what a run is told apart by, beside its method; ``names`` are those of the rewards."""
        plain = json.loads(json.dumps(dict(self.template_options), default=repr))
        return {
            "reward_funcs": list(names),
            "reward_weights": list(self.weights or [1.0] * len(names)),
            "max_completion_length": self.new_tokens,
            "temperature": self.temperature,
            "stop": list(self.stops),
            "chat_template_kwargs": plain,
        }


def read(
    args: Any,
    *,
    max_completion_length: int | None,
    temperature: float | None,
    reward_weights: Sequence[float] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    stop: str | Sequence[str],
) -> RewardSettings:
    """Return the settings of a run; what a trainer is told itself goes before its arguments.

    Args:
        args: training arguments; those of GRPOConfig are honoured, refused or warned about.
        max_completion_length: new tokens at most.
        temperature: logits are divided by it.
        reward_weights: of the reward functions.
        chat_template_kwargs: for the tokenizer's template.
        stop: texts that end a completion.

    Raises:
        BadInput: an argument that cannot be used, with the fix.
    """
    check(args)

    def chosen(own: Any, name: str, usual: Any) -> Any:
        value = getattr(args, name, None) if own is None else own
        return usual if value is None else value

    options = chosen(chat_template_kwargs, "chat_template_kwargs", {})
    if not isinstance(options, Mapping):
        raise BadInput(f"chat_template_kwargs is {options!r}: give a dictionary")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    length = chosen(max_completion_length, "max_completion_length", COMPLETION_LENGTH)
    return RewardSettings(
        new_tokens=whole("max_completion_length", length, least=1, most=MOST_TOKENS),
        temperature=real("temperature", chosen(temperature, "temperature", 1.0), least=0.0),
        weights=tuple(chosen(reward_weights, "reward_weights", ())),
        template_options=dict(options),
        stops=tuple(text for text in stops if text),
    )


def check(args: Any) -> None:
    """Refuse arguments of GRPOConfig that would change what is trained, and warn of those without effect.

    Raises:
        BadInput: with the argument and the fix.
    """
    usual = {
        field.name: field.default for field in dataclasses.fields(args) if field.default is not dataclasses.MISSING
    }
    for name, reason in REFUSED.items():
        if name in usual and getattr(args, name) not in (usual[name], None):
            raise BadInput(f"{name}={getattr(args, name)!r} does not go with ZORewardTrainer: {reason}")
    for name, reason in IDLE.items():
        if name in usual and getattr(args, name) not in (usual[name], None) and not _derived(args, name):
            warnings.warn(f"{name}={getattr(args, name)!r} has no effect in ZORewardTrainer: {reason}", stacklevel=5)


def _derived(args: Any, name: str) -> bool:
    """Return whether GRPOConfig sets an argument from others when the user has not."""
    others = {"steps_per_generation": "gradient_accumulation_steps", "epsilon_high": "epsilon"}
    return name in others and getattr(args, name) == getattr(args, others[name])


def population(args: Any, zo: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a method with as many members as GRPOConfig asks for completions of a prompt.

    Every member writes one completion of each prompt, so ``num_generations`` is the size of the population, 2 K. The
    method's own option ``queries`` goes before the default of GRPOConfig.

    Raises:
        BadInput: an odd number, or another one than ``queries`` says.
    """
    members = getattr(args, "num_generations", None)
    if members is None or not takes_population(zo):
        return dict(options)
    usual = next(field.default for field in dataclasses.fields(args) if field.name == "num_generations")
    if "queries" in options:
        if members not in (usual, options["queries"] and 2 * options["queries"]):
            raise BadInput(
                f"num_generations={members} and queries={options['queries']} differ: a population has 2 x queries "
                "members, each of which answers every prompt once, so leave one of them out"
            )
        return dict(options)
    if members % 2:
        raise BadInput(f"num_generations={members} is odd: members of a population are pairs, so give an even number")
    return {**options, "queries": members // 2}


def takes_population(zo: Any) -> bool:
    """Return whether a choice of method is evolution strategies as gradless has them."""
    return (METHODS[zo].make if isinstance(zo, str) and zo in METHODS else zo) is es


def check_rate(args: Any) -> None:
    """Warn of a learning rate that nobody has chosen: defaults are for gradients."""
    field = next(field for field in dataclasses.fields(args) if field.name == "learning_rate")
    if args.learning_rate == field.default:
        warnings.warn(
            f"learning_rate={args.learning_rate:g} is the default of {type(args).__name__}, for gradients: rates of "
            "evolution strategies are of the size of eps, such as 1e-3",
            stacklevel=4,
        )
