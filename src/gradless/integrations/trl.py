"""`ZOSFTTrainer`: supervised fine-tuning of TRL with forward passes only; and `ZORewardTrainer`."""

from __future__ import annotations

from trl import SFTTrainer

from gradless.integrations.rewards import ZORewardTrainer as ZORewardTrainer
from gradless.integrations.transformers import ZOTrainerMixin


class ZOSFTTrainer(ZOTrainerMixin, SFTTrainer):
    """``trl.SFTTrainer`` with forward passes only. See `ZOTrainerMixin` for its arguments.

    TRL's ``num_tokens`` counts what went through the model, so every probed token at least twice.
    """
