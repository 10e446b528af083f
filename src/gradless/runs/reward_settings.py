"""Settings of runs that generate text, and of those that train on a reward for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from gradless.errors import BadInput
from gradless.system.typed import Flag, Names, NotNegative, Seconds

if TYPE_CHECKING:
    from gradless.methods import Method
    from gradless.tasks import Task

REWARD: Final = "reward"
"""The objective of reward functions."""
GENERATED: Final = ("f1", REWARD)
"""Objectives that generate text."""
SOURCES: Final = "reward_sha256"
"""Key of ``config.json`` that is no setting: hashes of the files of reward functions, by name."""

Reward = Annotated[str, Names("reward", closed=False)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSettings:
    """What is generated, and what rewards it."""

    reward: Annotated[tuple[Reward, ...], Flag("--reward")] = ()
    """Train on a function of generated texts: FILE.py:NAME, MODULE:NAME or a built-in one.

    It is called as in TRL: reward(prompts, completions, **columns) returns a list of numbers, None for no reward."""
    reward_weight: Annotated[tuple[float, ...], Flag("--reward-weight")] = ()
    """Weight of each --reward, in their order (1)."""
    reward_timeout: Seconds = 60.0
    """Seconds that a call of the reward functions may take."""
    pass_reward: float = 1.0
    """Least reward of a text that counts as right."""
    max_new_tokens: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    """Tokens of a generated text (of the task; own prompts: 128)."""
    stop: Annotated[tuple[str, ...], Flag("--stop")] = ()
    """Text that ends a generated one; by default the task's, of own prompts none.

    On the command line a backslash and n are a newline, a backslash and t a tab."""
    temperature: NotNegative = 1.0
    """Of training texts; 0 is greedy. Evaluations are greedy."""


def resolved(config: Any, method: Method) -> dict[str, Any]:
    """Return the objective and the reward functions of a run, where it is trained on a reward; else nothing.

    Args:
        config: the `gradless.runs.config.TuneConfig`.
        method: the method that it names.

    Raises:
        BadInput: settings contradict each other.
    """
    rewards = named(config)
    if config.objective not in (None, REWARD):
        if config.reward:
            raise BadInput(f"--objective {config.objective} does not use --reward: leave one of them out")
        rewards = ()
    if not rewards:
        if config.objective == REWARD:
            raise BadInput("--objective reward needs a reward function: name one with --reward")
        if config.own and config.own.get("labels") is None:
            raise BadInput("own files without --labels need a --reward, which scores what is generated: give either")
        return {}
    if method.differentiates:
        raise BadInput(f"a reward has no gradient, which the method {config.method} needs: use --method es")
    if config.own and config.own.get("labels") is not None:
        raise BadInput(
            "--labels are for choosing among words, and --reward scores generated text: leave one of them out"
        )
    if config.samples and not config.temperature:
        raise BadInput("--temperature is 0, with which all --samples would be the same text: raise it")
    return {"reward": rewards, "objective": REWARD}


def named(config: RewardSettings) -> tuple[str, ...]:
    """Return the names of the reward functions of a run or of a group: those that are given, or the task's own.

    Raises:
        BadInput: another number of weights than of functions.
    """
    if len(config.reward_weight) not in (0, len(config.reward)):
        raise BadInput(
            f"{len(config.reward_weight)} --reward-weight for {len(config.reward)} --reward: give one for each, or none"
        )
    task = getattr(config, "task", None)
    if config.reward or task is None:
        return config.reward
    from gradless import tasks

    return tasks.get(task).rewards


def for_run(task: Task, config: Any) -> Task:
    """Return a task with the length and the ends of generated texts that a run asks for."""
    if config.max_new_tokens is not None:
        task = dataclasses.replace(task, max_new_tokens=config.max_new_tokens)
    if config.stop:
        task = dataclasses.replace(task, stop=config.stop[0], more_stops=config.stop[1:])
    return task


def unset(config: RewardSettings) -> list[str]:
    """Return the settings that say nothing about a run, and that its ``config.json`` leaves out."""
    if config.reward:
        return []
    return [one.name for one in dataclasses.fields(RewardSettings) if getattr(config, one.name) == one.default]
