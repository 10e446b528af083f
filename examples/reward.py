"""Train on a reward: a Python function of what the model writes. Runs offline in seconds.

    pip install ".[trainer]" && python examples/reward.py

"tiny-llama" has random weights: it learns that letters pay, and nothing of use. What makes it useful: MODEL =
"smollm2-135m" (98 MB, downloaded once), a reward that fits your rows, eps 6e-3, a learning rate of 2e-2, temperature 1.
"""

from transformers import TrainingArguments

from gradless.integrations.rewards import ZORewardTrainer

MODEL = "tiny-llama"


def letters(completions, **columns):
    """Return the number of letters of each completion; columns of the rows come as further arguments."""
    return [sum(one.isascii() and one.isalpha() for one in text) for text in completions]


rows = [{"prompt": f"Say {word}:"} for word in ("one", "two", "three", "four") for _ in range(4)]
args = TrainingArguments(
    "runs/reward", max_steps=25, learning_rate=6e-2, per_device_train_batch_size=16, report_to="none", use_cpu=True
)
options = {"eps": 3e-2, "rank": 1, "queries": 8}  # 16 members, each of which answers every prompt
how = {"max_completion_length": 4, "temperature": 0.3, "zo_options": options}
trainer = ZORewardTrainer(MODEL, letters, args, rows, rows, **how)
before = trainer.evaluate()["eval_reward"]
trainer.train()
print(f"letters of a greedy completion: {before:.1f} -> {trainer.evaluate()['eval_reward']:.1f}")
