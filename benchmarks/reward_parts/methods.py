"""The runs: ours by `ZORewardTrainer`, and GRPO of TRL with LoRA on the same model, rows and reward."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import datasets
import transformers

from gradless.integrations.rewards import ZORewardTrainer
from gradless.lm.loading import LanguageModel
from reward_parts.problems import DEV_ROWS, PROBLEMS, Problem, Rows, measured, model_of

LORA: Final = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


class Clock(transformers.TrainerCallback):
    """Ends a run when its process has used so many CPU seconds; keeps mean rewards by step."""

    def __init__(self, budget: float | None) -> None:
        self.budget, self.rewards = budget, []
        self.begin = self.used = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.begin = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.used = time.process_time() - self.begin
        if self.budget is not None and self.used >= self.budget:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        if "reward" in (logs or {}):
            self.rewards.append(round(float(logs["reward"]), 4))


def run(task: str, method: str, seed: int, value: float, *, budget: float | None, data: Path | None, work: Path) -> Any:
    """Train once, and return what the line of the run has."""
    problem = PROBLEMS[task]
    rows = problem.rows(data)
    lm = model_of(problem)
    held = {"dev": rows["dev"][:DEV_ROWS], "test": rows["test"][: problem.test_rows]}
    before = {split: measured(lm, problem, part) for split, part in held.items()}
    clock = Clock(budget)
    make = {"es": population, "grpo": grpo}[method]
    trainer = make(lm, problem, seed, value, rows["train"], clock, work)
    trainer.train()
    if hasattr(trainer, "window"):
        trainer.window.eval()
    trained = LanguageModel(trainer.model.eval(), lm.tokenizer, False, lm.source, lm.name)
    after = {split: measured(trained, problem, part) for split, part in held.items()}
    steps = trainer.state.global_step
    return {
        "before": before,
        "after": after,
        "cpu_seconds": round(clock.used, 1),
        "steps": steps,
        "completions": steps * problem.prompts * problem.members,
        "training_rewards": clock.rewards,
    }


def _usual(work: Path, seed: int, value: float, steps: int) -> dict[str, Any]:
    return {
        **{"output_dir": str(work), "seed": seed, "learning_rate": value, "max_steps": steps},
        **{"lr_scheduler_type": "constant", "report_to": [], "use_cpu": True, "disable_tqdm": True, "bf16": False},
        **{"logging_steps": 1, "save_strategy": "no"},
    }


def population(
    lm: LanguageModel, problem: Problem, seed: int, value: float, rows: Rows, clock: Clock, work: Path
) -> Any:
    """Evolution strategies; ``value``: learning rate."""
    options = {"eps": problem.eps, "queries": problem.members // 2, "rank": 1, "engine": "dual"}
    return ZORewardTrainer(
        lm.model,
        problem.reward,
        transformers.TrainingArguments(
            **_usual(work, seed, value, problem.steps), per_device_train_batch_size=problem.prompts
        ),
        datasets.Dataset.from_list(rows),
        processing_class=lm.tokenizer,
        callbacks=[clock],
        zo_options=options,
        max_completion_length=problem.new_tokens,
        temperature=problem.temperature,
        stop=problem.stop,
    )


def grpo(lm: LanguageModel, problem: Problem, seed: int, value: float, rows: Rows, clock: Clock, work: Path) -> Any:
    """GRPO of TRL with LoRA: as many completions a step, until the CPU seconds are used; ``value``: learning rate."""
    import peft
    import trl

    def reward(completions: Any, **columns: Any) -> Any:
        cut = [text.split(problem.stop[0])[0] if problem.stop else text for text in completions]
        columns = {name: kept for name, kept in columns.items() if isinstance(kept, list)}
        return problem.reward(completions=[text.strip() for text in cut], **columns)

    transformers.set_seed(seed)
    completions = problem.prompts * problem.members
    args = trl.GRPOConfig(
        **_usual(work, seed, value, 10**5),
        per_device_train_batch_size=min(completions, problem.at_once),
        gradient_accumulation_steps=max(1, completions // problem.at_once),
        num_generations=problem.members,
        max_completion_length=problem.new_tokens,
        temperature=1.0,
        beta=0.0,
        gradient_checkpointing=False,
    )
    return trl.GRPOTrainer(
        model=lm.model,
        reward_funcs=reward,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=lm.tokenizer,
        peft_config=peft.LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[clock],
    )
