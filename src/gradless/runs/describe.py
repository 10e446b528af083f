"""Making the facts about a run's data: from its rows alone, and more of them with the model that reads the rows."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from gradless.lm import LanguageModel, encode, metrics
from gradless.lm.encode import DEFAULT_MAX_LENGTH, Encoded
from gradless.lm.evaluate import num_cut, render
from gradless.lm.objectives import Objective
from gradless.runs.facts import SPLITS, ClassFacts, Cut, DataFacts, Majority, Prompt
from gradless.runs.predictions import shorten
from gradless.tasks import Row, Splits, Task
from gradless.tasks.base import MASK, Example, target

Examples = Mapping[str, Sequence[Example]]
"""Rendered rows by split."""
UNEVEN: Final = 0.8
"""A class with this share of the training rows is worth a sentence..."""
RARE: Final = 10
"""...and so is one with so many times fewer rows than another."""
LONGEST_PROMPT, LONGEST_ANSWER = 600, 200
MOST_NAMES: Final = 5


def described(
    lm: LanguageModel,
    task: Task,
    splits: Splits,
    objective: Objective,
    own: Mapping[str, Any],
    max_length: int | None,
    encoded: Mapping[str, Sequence[Encoded]] | None = None,
) -> tuple[DataFacts, dict[str, Sequence[Encoded]]]:
    """Return the facts about rows under a model, and the rows as its tokens, by split.

    Args:
        lm: The model.
        task: Of the rows.
        splits: The rows.
        objective: What training minimises; it tells which part of a prompt is scored.
        own: `TuneConfig.own`.
        max_length: As it was asked for.
        encoded: Rows that are encoded already, such as those with demonstrations; the others are not read by the model.

    Raises:
        BadInput: a row that cannot be encoded (`gradless.lm.encode.encode`).
    """
    examples = {split: render(lm, task, rows) for split in SPLITS if (rows := getattr(splits, split))}
    tokens: dict[str, Sequence[Encoded]] = {**(encoded or {})}
    if encoded is None:
        tokens |= {split: encode.encode_all(lm, task, rows, max_length) for split, rows in examples.items()}
    facts = of_rows(task, splits, examples, own)
    return with_model(facts, lm, task, tokens, objective, max_length), tokens


def of_rows(task: Task, splits: Splits, examples: Examples, own: Mapping[str, Any]) -> DataFacts:
    """Return what the rows alone tell; the prompt is text here, as no model has cut or tokenised it yet.

    Args:
        task: Of the rows.
        splits: The rows.
        examples: The same rows, rendered; a split may be left out.
        own: `TuneConfig.own`.

    Cost: one pass over the rows.
    """
    rows = {split: len(examples.get(split, ())) for split in SPLITS}
    golds = {split: [_answers(task, one) for one in examples.get(split, ())] for split in SPLITS}
    facts = DataFacts(
        kind=task.kind,
        rows=rows,
        classes=_classes(task, examples) if task.kind == "classification" else [],
        majority={split: best for split in SPLITS if (best := _majority(task, golds[split])) is not None},
        chance=_chance(examples.get("test", ())) if task.kind == "choice" else None,
        answers=_lengths(examples) if task.kind == "generation" else "",
        repeated=_repeated(task, examples),
        contradictory=_contradictory(task, examples.get("train", ()), golds["train"]),
        prompt=_text_prompt(task, examples),
    )
    warnings = [*_doubts(facts, own), *_odd_texts(splits, examples), *_prefixes([one.word for one in facts.classes])]
    return msgspec.structs.replace(facts, warnings=warnings)


def with_model(
    facts: DataFacts,
    lm: LanguageModel,
    task: Task,
    encoded: Mapping[str, Sequence[Encoded]],
    objective: Objective,
    max_length: int | None,
) -> DataFacts:
    """Return the facts with what the model's tokens tell: the prompt as it is read, cut rows, tokens of label words.

    Args:
        facts: `of_rows`.
        lm: The model.
        task: Of the rows.
        encoded: The rows as tokens, by split.
        objective: What training minimises; it tells which part of a prompt is scored.
        max_length: As it was asked for.
    """
    first = next((rows[0] for split in SPLITS if (rows := encoded.get(split))), None)
    if first is None:
        return facts
    limit, reason = _limit(lm, task, max_length)
    cut = {
        split: sum(row.cut for row in rows) if split == "train" else num_cut(lm, task, rows, max_length)
        for split, rows in encoded.items()
    }
    classes, warnings = facts.classes, facts.warnings
    if classes and classes[0].word and len(first.options) == len(classes):
        classes = [
            msgspec.structs.replace(one, tokens=len(option)) for one, option in zip(classes, first.options, strict=True)
        ]
        words = [one.word for one in classes]
        known = set(_prefixes(words))
        warnings = [one for one in warnings if one not in known] + _prefixes(words, first.options)
    return msgspec.structs.replace(
        facts,
        classes=classes,
        warnings=warnings,
        majority={} if objective.passes is not None else facts.majority,  # a text is right by its reward then
        prompt=_read_prompt(lm, first, objective),
        cut=Cut(rows=cut, side=encode.cut_side(lm), limit=limit, reason=reason),
    )


# ------------------------------------------------------------------------------------------------------------
# answers


def _answers(task: Task, example: Example) -> tuple[str, ...]:
    """Return the answers that are right for a row: names of classes, positions of options, or texts."""
    if "solved" in task.metrics:
        return example.answers
    if task.kind == "generation":
        return tuple(dict.fromkeys(metrics.normalize(answer) for answer in example.answers))
    if task.kind == "choice":
        return tuple(f"option {index + 1}" for index in example.correct)
    return tuple(_label(task, index) for index in example.correct)


def _label(task: Task, index: int) -> str:
    return task.labels[index] if task.labels is not None and index < len(task.labels) else str(index)


def _majority(task: Task, golds: Sequence[tuple[str, ...]]) -> Majority | None:
    """Return the answer that is right most often; None without rows, and where no generated text is right twice."""
    counts = Counter(answer for row in golds for answer in row)
    if not counts:
        return None
    answer, count = counts.most_common(1)[0]
    if task.kind == "generation" and count == 1:
        return None
    return Majority(answer=shorten(answer, LONGEST_ANSWER), share=count / len(golds))


def _chance(examples: Sequence[Example]) -> float | None:
    shares = [len(one.correct) / len(one.options) for one in examples if one.options]
    return statistics.fmean(shares) if shares else None


def _classes(task: Task, examples: Examples) -> list[ClassFacts]:
    """Return the classes with their rows in each split."""
    counts = {split: Counter(one.correct[0] for one in rows if one.correct) for split, rows in examples.items()}
    every = [one for rows in examples.values() for one in rows[:1]]
    number = len(task.labels or ()) or max((len(one.options) for one in every), default=0)
    masked = any(MASK in one.prompt for one in every)
    words = (task.masked_words if masked else task.label_words) or ("",) * number
    return [
        ClassFacts(
            label=_label(task, index),
            word=words[index],
            rows={split: counts[split][index] for split in SPLITS if split in counts},
        )
        for index in range(number)
    ]


def _lengths(examples: Examples) -> str:
    """Return a phrase about the answers of generation, in words."""
    lengths = [len(one.answers[0].split()) for rows in examples.values() for one in rows if one.answers]
    return f"{statistics.median(lengths):g} words (median), {max(lengths)} at most" if lengths else ""


# ------------------------------------------------------------------------------------------------------------
# rows that stand there twice, and odd ones


def _key(task: Task, example: Example) -> Hashable:
    """Return what the model reads of a row, its answer left out."""
    return (example.prompt, example.options if task.kind == "choice" else ())


def _repeated(task: Task, examples: Examples) -> dict[str, int]:
    """Return how many rows of a split stand in another as well."""
    keys = {split: [_key(task, one) for one in examples.get(split, ())] for split in SPLITS}
    pairs = (("dev", "train"), ("test", "train"), ("test", "dev"))
    known = {split: set(rows) for split, rows in keys.items()}
    counts = {f"{one} in {other}": sum(key in known[other] for key in keys[one]) for one, other in pairs}
    return {name: count for name, count in counts.items() if count}


def _contradictory(task: Task, examples: Sequence[Example], golds: Sequence[tuple[str, ...]]) -> int:
    """Return how many training rows have the text of another one and another answer."""
    answers: dict[Hashable, Counter[tuple[str, ...]]] = {}
    for example, gold in zip(examples, golds, strict=True):
        answers.setdefault(_key(task, example), Counter())[gold] += 1
    return sum(counts.total() for counts in answers.values() if len(counts) > 1)


def _doubts(facts: DataFacts, own: Mapping[str, Any]) -> Iterator[str]:
    """Yield sentences about rows that make a result say less than it seems to."""
    for split, name in (("train", "training"), ("test", "test")):
        absent = [repr(one.label) for one in facts.classes if facts.rows[split] and not one.rows.get(split)]
        if absent:
            more = f" and {len(absent) - MOST_NAMES} others" if len(absent) > MOST_NAMES else ""
            yield f"no {name} row has the label {', '.join(absent[:MOST_NAMES])}{more}"
    counts = {one.label: one.rows["train"] for one in facts.classes if one.rows.get("train")}
    if len(counts) > 1:
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        if counts[most] >= UNEVEN * facts.rows["train"] or counts[most] >= RARE * counts[least]:
            yield (
                f"the training rows are uneven: {counts[most]} have the label {most!r} and {counts[least]} have "
                f"{least!r}; macro_f1 tells more than accuracy"
            )
    consequence = {"dev": "the selected step says little", "test": "their score says little about new rows"}
    for pair, count in facts.repeated.items():
        one, other = pair.split(" in ")
        rows = {"train": "training rows", "dev": "dev rows"}[other]
        end = consequence[one] if other == "train" else "they choose the step on which they are scored"
        yield f"{count} of {facts.rows[one]} {one} rows are {rows} too{_same_file(own, one, other)}: {end}"
    if facts.contradictory:
        yield f"{facts.contradictory} training rows have the text of another training row and another answer"


def _same_file(own: Mapping[str, Any], one: str, other: str) -> str:
    """Return a remark if the user gave one file for two splits."""
    same = one in own and other in own and Path(own[one]).resolve() == Path(own[other]).resolve()
    return f" (--{one} and --{other} are the same file)" if same else ""


def _odd_texts(splits: Splits, examples: Examples) -> Iterator[str]:
    """Yield sentences about columns that are empty or always the same, and about prompts that all are."""
    rows = [row for split in SPLITS if split in examples for row in getattr(splits, split)]
    columns: dict[str, Counter[str]] = {}
    for row in rows:
        for column, text in _columns(row).items():
            columns.setdefault(column, Counter())[text] += 1
    for column, texts in columns.items():
        if texts[""]:
            yield f"column {column!r} is empty in {texts['']} of {len(rows)} rows"
        elif len(texts) == 1 and len(rows) > 1:
            yield f"column {column!r} holds the same text in all {len(rows)} rows"
    prompts = {(one.prompt, one.options) for some in examples.values() for one in some}
    if not columns and len(prompts) == 1 and len(rows) > 1:
        yield f"the prompt of all {len(rows)} rows is the same"


def _columns(row: Row) -> dict[str, str]:
    """Return the texts of a row of the user's own files; none of another row."""
    columns = row.get("columns")
    texts = columns.items() if isinstance(columns, dict) else ()
    return {name: text for name, text in texts if isinstance(text, str)}


def _prefixes(words: Sequence[str], tokens: Sequence[Sequence[int]] | None = None) -> list[str]:
    """Return a sentence if a label word begins another one, by its tokens where they are known."""
    sequences: Sequence[Sequence[Any]] = words if tokens is None else tokens
    pairs = [
        f"{one!r} begins {other!r}"
        for one, short in zip(words, sequences, strict=True)
        for other, long in zip(words, sequences, strict=True)
        if 0 < len(short) < len(long) and long[: len(short)] == short
    ]
    if not pairs:
        return []
    more = f" and {len(pairs) - MOST_NAMES} more" if len(pairs) > MOST_NAMES else ""
    return [
        f"label words begin other ones ({', '.join(pairs[:MOST_NAMES])}{more}): what is compared is the mean "
        "log-probability of a word's tokens (calibrated: the sum)"
    ]


# ------------------------------------------------------------------------------------------------------------
# the prompt


def _text_prompt(task: Task, examples: Examples) -> Prompt | None:
    """Return the first prompt as text."""
    example = next((rows[0] for split in SPLITS if (rows := examples.get(split))), None)
    if example is None:
        return None
    before, mask, after = example.prompt.partition(MASK)
    scored = target(task, example) if example.answers or example.correct else ""
    return _shortened(before, scored, after if mask else example.tail)


def _read_prompt(lm: LanguageModel, row: Encoded, objective: Objective) -> Prompt:
    """Return the prompt of a row as its tokens say it, special ones included."""
    decode = partial(lm.tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    option = list(row.options[row.gold]) if row.options else []
    context = list(row.context(row.gold)) if row.contexts else list(row.prompt)
    if objective.passes is not None:  # what is scored is written first
        return _shortened(decode(list(row.prompt)), "", "")
    if row.mask is not None:
        return _shortened(decode(context[: row.mask]), decode(option), decode(context[row.mask + 1 :]))
    before, whole = decode(context), decode(context + option)
    if objective.name == "lm":
        return _shortened("", whole, "")
    # A token may be half a character, or drop its space, where it stands first.
    return _shortened(before, whole[len(before) :] if whole.startswith(before) else decode(option), "")


def _shortened(before: str, scored: str, after: str) -> Prompt:
    return Prompt(
        before=shorten(before, LONGEST_PROMPT),
        scored=shorten(scored, LONGEST_ANSWER),
        after=shorten(after, LONGEST_ANSWER),
    )


def _limit(lm: LanguageModel, task: Task, max_length: int | None) -> tuple[int, str]:
    """Return the most tokens of a sequence, and what sets that limit."""
    asked = encode.task_options(lm, task, max_length)["max_length"]
    limit = encode.length_limit(lm, asked)
    if max_length is not None and limit == max_length:
        return limit, "--max-length"
    if task.kind == "generation" and limit == encode.writing_limit(lm, task.max_new_tokens, max_length):
        return limit, f"which leaves room for {task.max_new_tokens} new ones"
    if limit == asked:
        return limit, "of this task; --max-length changes it"
    fits = limit == DEFAULT_MAX_LENGTH
    return limit, "unless --max-length says otherwise" if fits else f"what {lm.name} takes"
