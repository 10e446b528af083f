"""Write a tiny random model and a few reviews, to try the examples offline: python examples/tiny_reviews.py FOLDER."""

import csv
import sys
from pathlib import Path

from gradless.lm.tiny_models import build

folder = Path(sys.argv[1])
model, tokenizer, _ = build("llama", seed=0)
tokenizer.pad_token = tokenizer.eos_token
model.config.pad_token_id = tokenizer.pad_token_id
model.save_pretrained(folder / "model")
tokenizer.save_pretrained(folder / "model")
with (folder / "reviews.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["text", "label"])
    rows.writerows((f"film {i} was {'great' if i % 2 else 'terrible'}", i % 2) for i in range(32))
