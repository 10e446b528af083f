"""The real files, where they are present: row counts, label balance, and that every row renders."""

from __future__ import annotations

from collections import Counter

import pytest

from gradless import tasks
from gradless.tasks import MASK
from repository import SHARED_DATA

pytestmark = pytest.mark.skipif(
    not SHARED_DATA.is_dir(),
    reason=f"{SHARED_DATA} is absent; set GRADLESS_SHARED_DATA to the folder with the data sets",
)

COUNTS = {
    "sst2": ("sst2", {"train": 67349, "test": 872}),
    "sst2-bare": ("sst2", {"train": 67349, "test": 872}),
    "sst5": ("sst5", {"train": 8544, "dev": 1101, "test": 2210}),
    "mr": ("mr", {"train": 8662, "test": 2000}),
    "cr": ("cr", {"train": 1886, "test": 1885}),
    "imdb": ("imdb", {"train": 1707, "dev": 245, "test": 488}),
    "agnews": ("agnews", {"train": 10001, "test": 7600}),
    "mnli": ("nli", {"test": 9815}),
    "snli": ("nli", {"train": 1666, "test": 9842}),
    "cb": ("superglue/CB", {"train": 250, "test": 56}),
    "copa": ("superglue/COPA", {"train": 400, "test": 100}),
    "copa-bare": ("superglue", {"train": 400, "test": 100}),
    "rte": ("superglue/RTE", {"train": 2490, "test": 277}),
    "rte-bare": ("superglue", {"train": 2490, "test": 277}),
    "wsc": ("superglue", {"train": 554, "test": 104}),
    "multirc": ("superglue", {"train": 27243, "test": 4848}),
    "boolq": ("superglue", {"train": 32, "dev": 32, "test": 3270}),
    "record": ("superglue", {"train": 32, "test": 32}),
    "squad": ("squad", {"train": 4330, "test": 1190}),
    "drop": ("drop", {"test": 947}),
    "winogrande": ("winogrande", {"test": 1267}),
}

LABELS = {
    "cb": {"train": {0: 115, 1: 119, 2: 16}},
    "wsc": {"test": {0: 66, 1: 38}},
    "boolq": {"test": {0: 2033, 1: 1237}},
    "winogrande": {"test": {0: 628, 1: 639}},
    "agnews": {"test": {0: 1900, 1: 1900, 2: 1900, 3: 1900}},
    "snli": {"test": {0: 3329, 1: 3235, 2: 3278}},
}


@pytest.mark.few(6)
@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_prompts(name: str) -> None:
    folder, counts = COUNTS[name]
    task = tasks.get(name)
    assert task.read is not None
    splits = task.read(SHARED_DATA / folder)
    assert {split: len(rows) for split, rows in splits.items()} == counts
    for split, expected in LABELS.get(name, {}).items():
        assert Counter(row["label"] for row in splits[split]) == expected
    for rows in splits.values():
        for row in rows[:3000]:
            if task.render is not None:
                example = task.render(row)
                assert not example.prompt.endswith(" ")
                assert example.answers or all(0 <= index < len(example.options) for index in example.correct)
            if task.render_masked is not None:
                assert task.render_masked(row).prompt.count(MASK) == 1


def test_golden_rows() -> None:
    """First rows of the real files, through reader and prompt."""
    sst2, rte = tasks.get("sst2"), tasks.get("rte")
    assert sst2.read is not None
    assert sst2.render is not None
    first = sst2.render(sst2.read(SHARED_DATA / "sst2")["train"][0])
    assert first.prompt == "hide new secretions from the parental units It was"
    assert tasks.target(sst2, first) == " terrible"
    assert rte.read is not None
    assert rte.render_masked is not None
    masked = rte.render_masked(rte.read(SHARED_DATA / "superglue")["train"][0])
    assert masked.prompt == (
        "No Weapons of Mass Destruction Found in Iraq Yet?<mask>, weapons of Mass Destruction Found in Iraq."
    )
    assert masked.options[masked.correct[0]] == " No"


def test_the_main_job_can_be_loaded() -> None:
    splits = tasks.load(tasks.get("sst2"), data=SHARED_DATA / "sst2", num_train=1000, num_dev=256, num_test=872, seed=0)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (1000, 256, 872)
    assert 400 < sum(row["label"] for row in splits.train) < 700
