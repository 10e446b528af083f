"""The command ``gradless plan``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradless.cli.fields import of_fields
from gradless.cli.options import FILE, plugin_option
from gradless.cost.settings import PlanSettings
from gradless.system import tables, terminal

if TYPE_CHECKING:
    from gradless.cost.plan import Plan

COMPACT = 0.8
"""Rows whose weights differ by more than this factor keep them in different ways; adapters alone differ by less."""
HEADS = ("", "weights", "gradients", "optimizer state", "activations", "scratch", "total", "fits on")


@click.command("plan")
@of_fields(PlanSettings, "model method scheme batch_size length dtype compute_dtype attention objective engine device")
@of_fields(PlanSettings, "quantise offload rank num_prefix num_prompt")
@click.option(
    "--memory", multiple=True, help="Memory to compare with, e.g. 24GiB; a number alone is GB; may be repeated."
)
@click.option("--json", "json_file", type=FILE, help="Write all figures, in bytes, to this file.")
@plugin_option
def plan(memory: tuple[str, ...], json_file: Path | None, **settings: Any) -> None:
    """Say how much memory inference and ways of tuning need, from the model's configuration alone.

    No weights are fetched or made; of a hub id only config.json is. Runtime and fragmentation come on top: leave a
    tenth of the memory free.

    \b
    gradless plan --model shape:opt-13b --dtype bfloat16 --memory 40GB
    gradless plan --model gemma-3-270m --scheme lora --batch-size 8 --length 512 --json plan.json
    gradless plan --model meta-llama/Llama-3.1-8B --method zo-adam --objective lm
    """
    from gradless.cost import plan as job
    from gradless.system.atomic import write_json

    budgets = {_with_unit(text): job.size(text) for text in memory or job.BUDGETS}
    planned = job.plan(PlanSettings(**settings))
    show(planned, budgets)
    if memory:
        terminal.say(f"Compared with {'; '.join(f'{text} = {budget:,} bytes' for text, budget in budgets.items())}.")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, as_json(planned, budgets))


def as_json(planned: Plan, budgets: dict[str, int]) -> dict[str, Any]:
    """Return the JSON file: settings, and for each way its terms in bytes and the budgets that it fits."""
    rows = {
        need.name: {
            "weights_bytes": need.weights,
            "gradients_bytes": need.gradients,
            "optimizer_state_bytes": need.state,
            "activations_bytes": need.activations,
            "scratch_bytes": need.scratch,
            "total_bytes": need.total,
            "tuned_parameters": need.tuned,
            "fits": [text for text, budget in budgets.items() if need.fits(budget)],
        }
        for need in planned.needs
    }
    settings = {**dataclasses.asdict(planned.settings), "dtype": planned.dtype, "engine": planned.engine}
    return {**settings, "parameters": planned.parameters, "budgets_bytes": budgets, "needs": rows}


def show(planned: Plan, budgets: dict[str, int]) -> None:
    """Print a table on a terminal, plain lines elsewhere."""
    from gradless.lm.loading import IN_PLACE

    settings = planned.settings
    where = "their GGUF file" if planned.dtype == IN_PLACE else planned.dtype
    title = (
        f"{settings.model}: {planned.parameters / 1e6:,.0f}M weights in {where}, "
        f"{settings.batch_size} x {settings.length} tokens, {settings.attention} attention, "
        f"objective {settings.objective}, engine {planned.engine}"
    )
    rows = [
        (need.name, *map(gigabytes, need[1:7]), _fits([need.fits(b) for b in budgets.values()], list(budgets)))
        for need in planned.needs
    ]
    tables.show(title, HEADS, rows, left=(0, len(HEADS) - 1))
    terminal.say("GB are 10^9 bytes. Totals are peaks; the runtime (Python, CUDA) and fragmentation are not in them.")
    if min(need.weights for need in planned.needs) < COMPACT * max(need.weights for need in planned.needs):
        terminal.say("Rows with fewer GB of weights keep frozen ones quantised or out of memory; the others do not.")


def gigabytes(count: int) -> str:
    """Return bytes as GB, with the digits that are worth reading.

    Example:
        >>> gigabytes(25_769_803_776), gigabytes(1_234_567_890), gigabytes(12_345_678), gigabytes(99), gigabytes(0)
        ('25.8', '1.23', '0.012', '<0.001', '-')
    """
    if not count:
        return "-"
    value = count / 1e9
    if value < 0.0005:
        return "<0.001"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.{2 if value >= 1 else 3}f}"


def _with_unit(size: str) -> str:
    """Return a size as it is shown: what `gradless.cost.plan.size` takes for GB says so."""
    return f"{size.strip()}GB" if size.strip()[-1:].isdecimal() else size


def _fits(fits: Sequence[bool], names: Sequence[str]) -> str:
    """Return the budgets that hold it, the smallest first, or that none does."""
    return ", ".join(name for name, fit in zip(names, fits, strict=True) if fit) or "none of them"
