"""Tune a model on a table of your own: python examples/own_csv.py [MODEL].

The command line does the same: gradless tune --train ... --template ... --out RUN, then gradless replay RUN --save DIR.
Without a model the script takes tiny-llama, whose weights are random: nothing is downloaded, and next to nothing is
learnt. With gemma-3-270m it takes some minutes.
"""

import sys
from pathlib import Path

from gradless.runs.config import TuneConfig
from gradless.runs.train import tune

model = sys.argv[1] if len(sys.argv) > 1 else "tiny-llama"
tiny = model.startswith("tiny-")
here = Path(__file__).parent
config = TuneConfig(
    model=model,
    dtype="float32",  # of a quantised file too, all of whose weights are tuned here
    own={
        "train": str(here / "reviews.csv"),
        "test": str(here / "reviews_test.csv"),
        "template": "{text} It was",
        "label_column": "label",
        "labels": "0=terrible,1=great",
    },
    lr=1e-3 if tiny else 3e-6,
    steps=10 if tiny else 100,
    batch_size=8,
    num_train=20,
    num_dev=8,  # rows of the training file that choose the step
    num_test=12,
)
run = Path("runs/own-csv")
result = tune(config, run)
print(f"accuracy {result['zero_shot']['accuracy']:.3f} untouched, {result['test']['accuracy']:.3f} tuned")
print(f"{result['forwards']} forward passes, {result['ledger_bytes']} bytes of ledger")
