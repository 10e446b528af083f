"""What gradless computes and prints, written down so that a change of its structure cannot change it unseen.

    python tests/golden/record.py --out FOLDER      make the record (about three minutes on two cores)
    python tests/golden/record.py --compare FOLDER  make it again and show every difference from FOLDER

The record holds, for every method with full and LoRA tuning of a tiny model, the ledger, the hash of the replayed
weights and the losses of 20 steps; for every collaborative algorithm under five attacks the hash of the weights on
digits; the text of one report page of a run, of a benchmark and of collaborative runs (made from the inputs beside
this file); the help of every command; and all public names. Hashes of new runs depend on the processor's
floating-point units and on the version of torch: compare records of one machine only. Replays of the committed ledgers
do not. These are of version 1, and stay so: a ledger differs from one of them if its records do, and differing fields
of headers are only shown.
"""

from __future__ import annotations

import argparse
import difflib
import html
import json
import multiprocessing
import os
import re
import shutil
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
INPUTS = HERE / "inputs"
STEPS = 20
SCHEMES = ("full", "lora")
FZOO_RATES = {"full": "9.999999999999999e-06", "lora": "1e-3"}  # the defaults when the record was made
ATTACKS = ("alie", "foe", "sign-flip", "label-flip", "dissensus")
PAGES = ("run", "bench", "collab")


def invoke(arguments: list[str]) -> str:
    """Run a command in this process; returns what it printed.

    Raises:
        RuntimeError: it did not end with exit code 0.
    """
    from click.testing import CliRunner

    from gradless.cli import main

    result = CliRunner().invoke(main, arguments, prog_name="gradless", terminal_width=100)
    if result.exit_code:
        raise RuntimeError(f"gradless {' '.join(arguments)}\n{result.output}\n{result.exception!r}")
    return result.output


def write_rows(folder: Path) -> None:
    """Sentences whose last word tells the label."""
    words = (("bad", "incorrect"), ("good", "correct"))
    for name, count in (("train", 32), ("test", 8)):
        rows = [f"{37 * i % 101} was {words[i % 2][i // 2 % 2]},{i % 2}" for i in range(count)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")


def tune(cell: tuple[str, str]) -> tuple[str, dict[str, Any]]:
    """One run of a method; its ledger is kept under ``ledgers/``."""
    method, scheme = cell
    os.environ["COLUMNS"] = "100"
    name = f"{method}-{scheme}"
    invoke(
        [
            "tune",
            "--model",
            "tiny-llama",
            "--train",
            "train.csv",
            "--test",
            "test.csv",
            "--template",
            "{text} so",
            "--label-column",
            "label",
            "--labels",
            "0=bad,1=good",
            "--method",
            method,
            "--scheme",
            scheme,
            "--steps",
            str(STEPS),
            "--batch-size",
            "4",
            "--num-dev",
            "8",
            "--eval-every",
            "10",
            "--engine",
            "stream",
            "--weight-decay",
            "0" if method == "zo-cons" else "0.01",
            "--out",
            f"runs/{name}",
            *(("--set", "deep_units=1") if method == "hybrid" else ()),
            *(("--lr", FZOO_RATES[scheme]) if method == "fzoo" else ()),
        ]
    )
    run = Path("runs") / name
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    book = (run / "ledger").read_bytes()
    (Path("ledgers") / f"{name}.ledger").write_bytes(portable(book))
    entry = {
        "losses": [line["loss"] for line in lines if line["event"] == "step"],
        "lrs": [line["lr"] for line in lines if line["event"] == "step"][:1],
        "weights_sha256": result["weights_sha256"],
        "dev": result["dev"],
        "forwards": result["forwards"],
        "records": b"".join(split_ledger(book)[2]).hex(),
        "replayed": invoke(["replay", f"runs/{name}"]).split()[-1],
        "replayed_until_end": invoke(["replay", f"runs/{name}", "--until", str(STEPS)]).split()[-1],
    }
    return f"{method}/{scheme}", entry


def split_ledger(data: bytes) -> tuple[int, dict[str, Any], list[bytes]]:
    """Version, header and records of a ledger; records without their chained checksums."""
    version, length = struct.unpack_from("<HI", data, 8)
    header, offset = json.loads(data[14 : 14 + length]), 18 + length
    records = []
    while offset < len(data):
        _, count, flags = struct.unpack_from("<IHB", data, offset)
        end = offset + 9 + 4 * count + (8 * header["groups"] if flags & 1 else 0)
        records.append(data[offset:end])
        offset = end + 4
    return version, header, records


def portable(data: bytes) -> bytes:
    """A ledger without the folder that its run's files lay in, checksums made anew."""
    version, header, records = split_ledger(data)
    own = header["config"]["own"]
    header["config"]["own"] = {
        key: Path(value).name if key in ("train", "test") else value for key, value in own.items()
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    ledger = b"gradless" + struct.pack("<HI", version, len(text)) + text
    crc = zlib.crc32(ledger)
    ledger += struct.pack("<I", crc)
    for one in records:
        crc = zlib.crc32(one, crc)
        ledger += one + struct.pack("<I", crc)
    return ledger


def collaborate(cell: tuple[str, str]) -> tuple[str, dict[str, Any]]:
    """One simulation of peers on digits."""
    algorithm, attack = cell
    out = Path("collab") / f"{algorithm}-{attack}"
    invoke(
        [
            "collab",
            "simulate",
            "--recipe",
            "monna-digits",
            "--algorithm",
            algorithm,
            "--attack",
            attack,
            "--steps",
            str(STEPS),
            "--out",
            str(out),
        ]
    )
    result = json.loads((out / "result.json").read_text())
    kept = (
        "status",
        "weights_sha256",
        "worst_accuracy",
        "consensus_distance",
        "alpha",
        "lambda",
        "bytes_per_peer_step",
    )
    return f"{algorithm}/{attack}", {name: result[name] for name in kept}


def page_text(name: str) -> str:
    """What a reader sees of the report page made from the committed input, without pictures and styles."""
    folder = Path("pages") / name
    shutil.copytree(INPUTS / name, folder)
    invoke(["report", str(folder)])
    return visible_text((folder / "report.html").read_text())


def visible_text(page: str) -> str:
    """The text of an HTML page, an element a line."""
    page = re.sub(r"<(style|script|svg)\b.*?</\1>", "", page, flags=re.S)
    lines = (html.unescape(line).strip() for line in re.sub(r"<[^>]+>", "\n", page).splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def helps() -> dict[str, str]:
    """``--help`` of every command."""
    import click

    from gradless.cli import main

    texts: dict[str, str] = {}

    def visit(command: click.Command, words: list[str]) -> None:
        texts[" ".join(["gradless", *words])] = invoke([*words, "--help"])
        if isinstance(command, click.Group):
            for name in sorted(command.commands):
                visit(command.commands[name], [*words, name])

    visit(main, [])
    return texts


def public_names() -> list[str]:
    """Every name that ``import gradless`` offers."""
    import gradless

    return sorted(name for name in dir(gradless) if not name.startswith("_") and callable(getattr(gradless, name)))


def _prepare(folder: str) -> None:
    """A worker's surroundings: one thread, and a folder in which all paths are relative."""
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)


def record(out: Path, workers: int = 2) -> None:
    """Write the record into a folder."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["COLUMNS"] = "100"
    from gradless.collab.algorithms import ALGORITHMS
    from gradless.methods import METHODS

    with tempfile.TemporaryDirectory() as folder:
        for name in ("runs", "ledgers", "collab", "pages"):
            (Path(folder) / name).mkdir()
        write_rows(Path(folder))
        tunings = [(method, scheme) for method in METHODS for scheme in SCHEMES]
        simulations = [(algorithm, attack) for algorithm in ALGORITHMS for attack in ATTACKS]
        with multiprocessing.get_context("spawn").Pool(workers, _prepare, (folder,)) as pool:
            tuned = pool.map_async(tune, tunings, chunksize=1)
            simulated = pool.map_async(collaborate, simulations, chunksize=1)
            texts = pool.map_async(page_text, PAGES, chunksize=1)
            write_json(out / "tune.json", dict(tuned.get()))
            write_json(out / "collab.json", dict(simulated.get()))
            for name, text in zip(PAGES, texts.get(), strict=True):
                (out / f"page-{name}.txt").write_text(text)
        shutil.copytree(Path(folder) / "ledgers", out / "ledgers", dirs_exist_ok=True)
    (out / "help.txt").write_text("\n".join(f"==== {name}\n{text}" for name, text in helps().items()))
    (out / "names.txt").write_text("\n".join(public_names()) + "\n")


def write_json(path: Path, values: Any) -> None:
    """A JSON file that a line-by-line comparison can read."""
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def compare(old: Path, new: Path) -> int:
    """Print how two records differ; returns the number of files that do."""
    differing = 0
    for name in sorted({path.relative_to(root) for root in (old, new) for path in root.rglob("*") if path.is_file()}):
        first, second = ((root / name).read_bytes() if (root / name).exists() else b"" for root in (old, new))
        if first == second:
            continue
        if name.suffix == ".ledger" and first and second:
            headers = header_differences(first, second)
            print(f"header of {name}: {', '.join(headers)}")
            if split_ledger(first)[2] == split_ledger(second)[2]:
                continue
        differing += 1
        print(f"differs: {name}")
        if name.suffix in (".txt", ".json"):
            lines = (data.decode().splitlines() for data in (first, second))
            sys.stdout.writelines(f"{line[:200]}\n" for line in difflib.unified_diff(*lines, lineterm="", n=0))
    print(f"{differing} files differ")
    return differing


def header_differences(first: bytes, second: bytes) -> list[str]:
    """How the versions and header fields of two ledgers differ, such as ``arithmetic: None -> 1``."""
    (old_version, old, _), (new_version, new, _) = map(split_ledger, (first, second))
    old, new = ({"version": version, **header} for version, header in ((old_version, old), (new_version, new)))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name}: {str(old.get(name))[:60]} -> {str(new.get(name))[:60]}" for name in names]


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.out:
        record(options.out, options.workers)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), options.workers)
        return min(1, compare(options.compare, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
