"""The Trainer example of the transformers documentation, trained with forward passes only: two lines differ.

python examples/tiny_reviews.py tiny && python examples/trainer_text_classification.py tiny/model tiny/reviews.csv
python examples/trainer_text_classification.py google/gemma-3-270m reviews.csv    # columns: text, label; asks the hub
"""

import sys

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

from gradless.integrations.transformers import ZOTrainer  # was: from transformers import Trainer

name, file = sys.argv[1:]
set_seed(0)  # the classifier's head is new, and random
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
data = load_dataset("csv", data_files=file, split="train").train_test_split(0.25, seed=0)
data = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=128), batched=True)
args = TrainingArguments("out", learning_rate=1e-6, num_train_epochs=3, eval_strategy="epoch", report_to="none")
trainer = ZOTrainer(  # was: trainer = Trainer(
    model=model, args=args, train_dataset=data["train"], eval_dataset=data["test"], processing_class=tokenizer
)
trainer.train()
