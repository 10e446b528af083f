"""Drawing train, dev and test rows: the protocol of MeZO (arXiv 2305.17333), but too few rows are an error.

A seeded permutation of the training rows gives first the training examples, then the dev examples; a seeded
permutation of the test rows gives the test examples. The permutations come from the project's counter-based
streams, so they are the same on every machine and under every library version.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gradless.errors import BadInput
from gradless.tasks import hub
from gradless.tasks.base import Splits, Task
from gradless.tasks.files import Row


def load(
    task: Task,
    *,
    data: Path | None,
    num_train: int,
    num_dev: int,
    num_test: int,
    seed: int,
    k_shot: int | None = None,
) -> Splits:
    """Return the rows of one run, drawn from a task's data.

    Args:
        task: The task.
        data: Folder of local files; None generates the rows if the task can, else reads them from the hub through
            `datasets` (network).
        num_train: Training rows; 0 is allowed (zero-shot).
        num_dev: Rows for model selection: from the data's own dev split if `Task.read` returns one, else the
            training rows that follow the first ``num_train``.
        num_test: Test rows.
        seed: Of the permutations.
        k_shot: Per class the first k permuted training rows train and the next k are dev (LM-BFF's protocol);
            ``num_train`` and ``num_dev`` are then not used.

    Raises:
        BadInput: Missing files, damaged rows, or a split with fewer rows than asked for.
    """
    if data is None and task.generate is not None:
        pools, where = task.generate(), "its generator"
    elif data is None:
        pools, where = hub_rows(task), f"{task.hub[0] if task.hub else ''} on the hub"
    elif task.read is None:
        raise BadInput(f"task '{task.name}' reads its own files: do not pass --data")
    else:
        pools, where = task.read(Path(data)), str(data)
    return draw(
        task,
        pools,
        where=where,
        num_train=num_train,
        num_dev=num_dev,
        num_test=num_test,
        seed=seed,
        k_shot=k_shot,
    )


def draw(
    task: Task,
    pools: dict[str, list[Row]],
    *,
    where: str,
    num_train: int | None,
    num_dev: int | None,
    num_test: int | None,
    seed: int,
    k_shot: int | None = None,
) -> Splits:
    """Return the rows of one run, drawn from rows that are already read; None takes all (see `load`)."""
    for flag, number in (("train", num_train), ("dev", num_dev), ("test", num_test)):
        if number is not None and number < 0:
            raise BadInput(f"--num-{flag} is {number}: pass 0 or more")
    test = _shuffled(pools.get("test", []), seed, "test")
    if num_test is not None:
        _check_enough(task, where, "test", num_test, len(test))
    train = _shuffled(pools.get("train", []), seed, "train")
    if k_shot is not None:
        train, dev = _per_class(task, train, k_shot, where)
    elif "dev" in pools:
        dev = _shuffled(pools["dev"], seed, "dev")
        _check_enough(task, where, "train", num_train or 0, len(train))
        _check_enough(task, where, "dev", num_dev or 0, len(dev))
        train, dev = train[:num_train], dev[:num_dev]
    else:
        held = num_dev or 0
        first = max(0, len(train) - held) if num_train is None else num_train
        _check_enough(task, where, "train", first, len(train), dev=held)
        train, dev = train[:first], train[first : first + held]
    test = test[:num_test]
    return Splits(train, dev, test, fingerprint(train, dev, test))


def fingerprint(train: list[Row], dev: list[Row], test: list[Row]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of the rows: sorted keys, no spaces, UTF-8."""
    chosen = {"train": train, "dev": dev, "test": test}
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _shuffled(rows: list[Row], seed: int, split: str) -> list[Row]:
    from gradless.rng import permutation  # lazy: it imports torch, which listing the tasks does not need

    return [rows[i] for i in permutation(len(rows), seed=seed, stream=f"split/{split}").tolist()]


def _check_enough(task: Task, where: str, split: str, asked: int, available: int, *, dev: int = 0) -> None:
    if asked + dev <= available:
        return
    request = f"{asked} {split} rows" + (f" and {dev} dev rows after them" if dev else "")
    if available:
        # Dev rows are cut from the training rows, so either number may be the one to lower.
        fix = f"lower --num-{split}" + (" or --num-dev" if dev else "")
    else:
        files = task.read.expects(split) if task.read is not None else ()
        add = f"add {' or '.join(files)}" if files else f"give a {split} file"
        fix = f"{add}, or pass --num-{split} 0" + (" and --num-dev 0" if dev else "")
    raise BadInput(f"{task.title}: asked for {request}, but {where} has {available}: {fix}")


def _per_class(task: Task, rows: list[Row], k: int, where: str) -> tuple[list[Row], list[Row]]:
    if k < 1:
        raise BadInput(f"k-shot is {k}: pass 1 or more, or leave it out")
    if task.kind != "classification" or task.labels is None:
        raise BadInput(f"{task.title} has no classes to draw {k} rows of each: pass --num-train instead")
    seen = [0] * len(task.labels)
    train: list[Row] = []
    dev: list[Row] = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= k:
            train.append(row)
        elif seen[row["label"]] <= 2 * k:
            dev.append(row)
    for label, count in zip(task.labels, seen, strict=True):
        if count < 2 * k:
            raise BadInput(
                f"{task.title}: {k}-shot needs {2 * k} training rows of '{label}' (train and dev), "
                f"but {where} has {count}: lower the number of shots"
            )
    return train, dev


def hub_rows(task: Task) -> dict[str, list[Row]]:
    """Return the task's rows from the Hugging Face hub (network), in canonical form.

    Raises:
        BadInput: The task has no hub id, `datasets` is not installed, or the hub cannot be reached.
    """
    if task.hub is None or task.read is None:
        raise BadInput(f"{task.title} is not read from the hub: pass --data DIR with the local files")
    repo, config = task.hub
    loaded = hub.load(hub.Name(repo, config), "pass --data DIR with local files")
    try:
        return {
            split: [row for raw in loaded[hub_split] for row in task.read.tidy(dict(raw))]
            for split, hub_split in zip(("train", "test"), task.hub_splits, strict=True)
        }
    except Exception as error:  # whatever a changed data set does: the fix is one
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise BadInput(f"cannot read {repo} from the hub ({reason}): pass --data DIR with local files") from error
