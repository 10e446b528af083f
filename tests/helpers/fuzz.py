"""Invalid command lines, files of settings and damaged run files, generated from the commands' own declarations.

A seed makes a case: a command that works, with one thing in it that cannot be. Values out of range come from the type
of the option or field itself, so that new ones are tried without a line here; a new command needs a working line in
`commands`. `fuzz_endings.run` calls the command line with it.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

import peers_audit_helpers as peer_runs
import run_helpers as h
from fuzz_values import DIGITS, NUMBERS, fits, odd_values, parsed
from gradless.cli import main
from gradless.cli.completion import Named
from gradless.cli.fields import Value
from gradless.collab.config import CollabConfig
from gradless.collab.simulation import study
from gradless.peers import status
from gradless.runs.config import OwnFiles, TuneConfig
from gradless.system import typed
from gradless.system.progress import Reporter
from gradless.system.typed import Names

WRITTEN = ("out", "save", "json", "json_file", "picture", "tensorboard")
"""Options whose path is made, not read."""
FREE = ("help", "version", "cell", "only", "push", "tensorboard", "memory", "verify")
"""Text that only the command can judge, and what is no option of a job."""


class Case(NamedTuple):
    """A command line, and what makes it invalid."""

    kind: str
    about: str
    arguments: list[str]


class World:
    """Data, finished runs and working command lines; `fresh` gives each case a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = h.sentiment(folder / "data", train_rows=24, test_rows=8)
        self.settings = {
            **{"model": "tiny-llama", "steps": 2, "batch_size": 2, "num_train": 8, "num_dev": 4, "num_test": 4},
            **{"lr": 1e-3, "own": self.own, "zero_shot": False},
        }
        self.run = folder / "run"
        h.tune(TuneConfig(**self.settings), self.run)
        self.group = folder / "group"
        group = CollabConfig(peers=4, byzantine=1, steps=2, batch_size=4, eval_rows=8, rule="krum", attack="foe")
        study.run_all([group], self.group, reporter=Reporter(quiet=True))
        (folder / "peers").mkdir()
        self.peer = peer_runs.write_run(folder / "peers", peer_runs.random_rows(), steps=3)
        there = [status.Peer(name=name, alive=False) for name in peer_runs.NAMES]
        now = status.Status(run="ab", me="anna", step=3, steps=3, updated=0.0, phase="ended", peers=there)
        status.write(self.peer.folder, now)
        self.grid = {
            "seeds": [1],
            "budget": {"steps": 2},
            "base": {"model": "tiny-llama", "own": self.own, "lr": 1e-3, "num_train": 8, "num_test": 4},
            "axes": {"method": ["mezo"]},
        }
        self.cases = 0

    def fresh(self) -> Path:
        """Return an empty folder."""
        self.cases += 1
        folder = self.folder / "cases" / str(self.cases)
        folder.mkdir(parents=True)
        return folder

    def commands(self, folder: Path) -> dict[tuple[str, ...], list[str]]:
        """Return arguments with which each command works; what it writes goes into ``folder``."""
        own = [part for name, value in self.own.items() for part in (f"--{name.replace('_', '-')}", value)]
        job = ["--model", "tiny-llama", *own, "--num-train", "8", "--num-dev", "4", "--num-test", "4"]
        out = ["--out", str(folder / "out")]
        grid = folder / "grid.json"
        grid.write_text(json.dumps(self.grid))
        cards = [str(identity / "card.toml") for identity in self.peer.identities]
        identity, rows = str(self.peer.identities[0]), str(self.peer.files[0])
        part = ["--manifest", str(self.peer.folder / "manifest.toml"), "--identity", identity, "--train", rows]
        part += ["--fingerprint", self.peer.manifest.fingerprint]
        group = ["--peers", "4", "--byzantine", "1", "--steps", "1", "--rule", "krum", "--attack", "foe"]
        return {
            ("tune",): [*job, "--steps", "1", "--batch-size", "2", "--lr", "1e-3", *out],
            ("eval",): [*job, *out],
            ("replay",): [str(self.run)],
            ("profile",): ["--model", "tiny-llama", "--no-memory", "--repeats", "1"],
            ("plan",): ["--model", "tiny-llama"],
            ("predict",): [str(self.run), "--input", self.own["test"], "--output", str(folder / "out.csv")],
            ("bench",): [str(grid), *out],
            ("report",): [str(self.run)],
            ("list",): ["methods"],
            ("recipe",): ["mezo/table1/sst2-mezo", "--print"],
            ("ledger", "check"): [str(self.run)],
            ("ledger", "repair"): [str(self.run)],
            ("demo",): out,
            ("doctor",): [],
            ("completion",): ["bash"],
            ("collab", "simulate"): [*group, *out],
            ("peers", "keygen"): ["--name", "eve", "--endpoint", "tls/127.0.0.1:7000", *out],
            ("peers", "init"): [*cards, "--f", "1", "--model", "tiny-llama", *own[4:], "--steps", "1", *out],
            ("peers", "run"): [*part, *out],  # waits for others once nothing is wrong, like the next two
            ("peers", "join"): [*part, *out],
            ("peers", "demo"): [*("--model", "tiny-llama", "--steps", "1"), *out],
            ("peers", "status"): [str(self.peer.folder)],
            ("peers", "audit"): [str(self.peer.folder)],
            ("peers", "excise"): [str(self.peer.folder), "bert", *out],
            ("collab", "split"): ["--dataset", "digits", "--picture", str(folder / "out.png")],
        }


def walk(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its name."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name), command


# ---------------------------------------------------------------------------------------------------------------
# cases


def case(world: World, seed: int) -> Case:
    """Return the case of a seed."""
    draw = random.Random(seed)
    kinds = (option, option, option, shape, settings, settings, grid, task_file, damaged, damaged)
    return draw.choice(kinds)(world, draw)


def option(world: World, draw: random.Random) -> Case:
    """One option of one command, with a value that it does not take."""
    folder = world.fresh()
    while True:
        name, command = draw.choice(list(walk()))
        tried = [one for one in command.params if one.name not in FREE and not _flag(one)]
        if tried:
            parameter = draw.choice(tried)
            value = bad_value(parameter, folder, draw)
            if value is not None:
                break
    arguments = world.commands(folder)[name]
    if isinstance(parameter, click.Argument):
        arguments = [value, *arguments[1:]]
    else:
        arguments = [*arguments, f"{parameter.opts[0]}={value}"]
    if parameter.name == "seed" and name == ("demo",):
        return option(world, draw)
    return Case("option", f"{' '.join(name)} {parameter.opts[0]}", [*name, *arguments])


def _flag(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and (parameter.is_flag or parameter.hidden)


def bad_value(parameter: click.Parameter, folder: Path, draw: random.Random) -> str | None:
    """Return what an option does not take; None if its type does not tell."""
    kind = parameter.type
    if isinstance(kind, Value):
        if kind.path is not None:
            return bad_path(kind.path.dir_okay, False, folder, draw)
        if dict in kind.setting.types and str not in kind.setting.types:
            return draw.choice(("keep", "=1", "nope=1", "strength=1e", "queries=nan", f"nope={'[' * 5000}"))
        if kind.numbers:
            bad = [text for text in NUMBERS if not fits(kind.setting.hint, parsed(kind.numbers, text))]
            return draw.choice(bad)
        names, words = kind.setting.metadata(Names), typed.choices(kind.setting.hint)
        return draw.choice(("no-such-name", "\udcff")) if (names and names.closed) or words else "half \udcff"
    if isinstance(kind, click.Path):
        return bad_path(kind.dir_okay, parameter.name in WRITTEN, folder, draw)
    if isinstance(kind, click.Choice | Named):
        known = kind.known.kind if isinstance(kind, Named) else ""
        return "./no/such/model" if known == "model" else "no-such-name"
    return None


def bad_path(folders: bool, written: bool, folder: Path, draw: random.Random) -> str:
    """Return a path that cannot be read, or written."""
    (folder / "loop").symlink_to("loop")
    (folder / "file").write_bytes(b"\xff\xfe not text \0")
    (folder / "folder").mkdir()
    paths = [folder / "loop", folder / ("n" * 300), folder / "loop" / "x", ""]
    if written:
        paths += [folder / "file" / "x", *([folder / "file"] if folders else [folder / "folder"])]
    else:
        paths += [folder / "nothing", folder / "file", *([] if folders else [folder / "folder"])]
    return str(draw.choice(paths))


def shape(world: World, draw: random.Random) -> Case:
    """A command line of the wrong shape: misspelt, too short, too long."""
    folder = world.fresh()
    name, command = draw.choice(list(walk()))
    arguments = world.commands(folder)[name]
    flags = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    one = draw.choice(flags) if flags else None
    choice = draw.randrange(6)
    if choice == 0 and one is not None:
        return Case("shape", "a misspelt option", [*name, *arguments, _misspelt(one.opts[0], draw)])
    if choice == 1 and one is not None and not one.is_flag and one.flag_value is None:
        return Case("shape", "an option without its value", [*name, *arguments, one.opts[0]])
    if choice == 2 and one is not None and one.is_flag and one.name not in FREE:
        return Case("shape", "a flag with a value", [*name, *arguments, f"{one.opts[0]}=3"])
    if choice == 3:
        return Case("shape", "a misspelt command", [*name[:-1], _misspelt(name[-1], draw), *arguments])
    if choice == 4 and any(parameter.required for parameter in command.params):
        return Case("shape", "nothing given", [*name])
    return Case("shape", "one argument too many", [*name, *arguments, "surplus"])


def _misspelt(text: str, draw: random.Random) -> str:
    index = draw.randrange(2, len(text))
    return f"{text[:index]}zq{text[index:]}"


def settings(world: World, draw: random.Random) -> Case:
    """A file of settings for ``tune``, with one that cannot be."""
    folder = world.fresh()
    return Case("settings", *_with_settings(world, folder, draw))


def _with_settings(world: World, folder: Path, draw: random.Random) -> tuple[str, list[str]]:
    about, text = odd_record(TuneConfig, world.settings, draw)
    path = folder / draw.choice(("settings.json", "settings.toml"))
    if path.suffix == ".toml":
        about, text = (
            "damaged TOML",
            draw.choice(
                (
                    "steps = ",
                    "steps = 1\nsteps = 2",
                    f"a = {'[' * 3000}",
                    "[own]\ntrain = 3\n",
                    "lr = nan",
                    "seed = -1",
                    f"steps = {DIGITS}",
                    "own = 3",
                    "\0",
                    "options = 3",
                )
            ),
        )
    path.write_text(text)
    return about, ["tune", "--config", str(path), "--model", "tiny-llama", "--out", str(folder / "out")]


def odd_record(record: Any, good: dict[str, Any], draw: random.Random) -> tuple[str, str]:
    """Return the JSON text of a record with one field that cannot be, and what is wrong with it."""
    known = typed.settings(record)
    choice = draw.randrange(10)
    if choice == 0:
        return "an unknown name", json.dumps({**good, _misspelt(draw.choice(list(known)), draw): 1})
    if choice == 1:
        name = draw.choice(list(good))
        return "a name twice", json.dumps(good)[:-1] + f", {json.dumps(name)}: {json.dumps(good[name])}}}"
    numbers = [name for name, one in known.items() if {int, float} & set(one.types)]
    if choice == 2 and numbers:
        name = draw.choice(numbers)
        literal = draw.choice(("NaN", "Infinity", "-Infinity", "9" * 5000, "1e999"))
        return f"{name} = {literal[:9]}", json.dumps({**good, name: "WORD"}).replace('"WORD"', literal)
    if choice == 3:
        text = json.dumps(good)
        return "cut short", text[: draw.randrange(len(text))]
    if choice == 4:
        return "something else", draw.choice(
            ("[]", "3", '"text"', "null", "", "[" * 5000, '{"a":' * 5000, "\0", "{}{}")
        )
    if choice == 5 and "own" in good:
        name = draw.choice(list(good["own"]))
        value = odd_values(typed.settings(OwnFiles)[name].hint, draw)
        return f"own.{name}", json.dumps({**good, "own": {**good["own"], name: value}})
    name = draw.choice([name for name in known if not isinstance(known[name].default, bool) or draw.random() < 0.3])
    return name, json.dumps({**good, name: odd_values(known[name].hint, draw)})


def grid(world: World, draw: random.Random) -> Case:
    """A benchmark's grid with a key that cannot be."""
    folder = world.fresh()
    arguments = world.commands(folder)[("bench",)]
    values: dict[str, Any] = json.loads(json.dumps(world.grid))
    where = draw.choice(("top", "budget", "base", "axes", "grid", "when", "own", "text"))
    odd = draw.choice((None, -1, 0.5, "word", [], {}, True, 10**30, [None], {"x": {}}, [{}]))
    known = typed.settings(TuneConfig)
    name = draw.choice([name for name in known if name not in ("own", "options")])
    if where == "text":
        text = json.dumps(values)
        Path(arguments[0]).write_text(draw.choice((text[: draw.randrange(len(text))], "", "[]", "[" * 5000, "\0")))
        return Case("grid", "damaged", ["bench", *arguments])
    if where == "top":
        values[draw.choice(("seeds", "budget", "base", "axes", "select", "when", "sead"))] = draw.choice(
            (-1, 0.5, [None], True)
        )
    elif where == "budget":
        values["budget"] = draw.choice(
            ({}, {"steps": -1}, {"steps": 1, "forwards": 1}, {"step": 1}, {"forwards": 10**12}, {"steps": "9"})
        )
    elif where == "base":
        values["base"][name] = odd_values(known[name].hint, draw)
    elif where in ("axes", "grid"):
        values.setdefault(where, {})[name] = draw.choice(([], [odd_values(known[name].hint, draw)], 3, None))
    elif where == "when":
        values["when"] = draw.choice(([odd], {"x": 1}, [{"metod": "x"}], [{"method": []}], [{"method": "mezo"}]))
    else:
        field = draw.choice(list(world.own))
        values["base"]["own"] = draw.choice(
            (odd, {**world.own, field: odd_values(typed.settings(OwnFiles)[field].hint, draw)})
        )
    Path(arguments[0]).write_text(json.dumps(values))
    return Case("grid", f"{where} {name}", ["bench", *arguments])


def task_file(world: World, draw: random.Random) -> Case:
    """A task file, or an option of own files, that tells no task."""
    folder = world.fresh()
    path = folder / "task.json"
    about, text = odd_record(OwnFiles, world.own, draw)
    path.write_text(text)
    arguments = ["--model", "tiny-llama", "--task-file", str(path), "--steps", "1", "--out", str(folder / "out")]
    return Case("task file", about, ["tune", *arguments])


def damaged(world: World, draw: random.Random) -> Case:
    """A folder of a run one of whose files was damaged, and a command on it."""
    folder = world.fresh()
    source = draw.choice((world.run, world.group))
    shutil.copytree(source, folder / "run")
    files = sorted(path.relative_to(folder / "run") for path in (folder / "run").rglob("*") if path.is_file())
    name = draw.choice([name for name in files if name.suffix in ("", ".json", ".jsonl")])
    path = folder / "run" / name
    data = bytearray(path.read_bytes())
    how = draw.choice(("emptied", "truncated", "flipped", "folder", "garbage", "swapped", "deep", "odd"))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "flipped":
        for _ in range(draw.choice((1, 8))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    else:
        other = (folder / "run" / draw.choice([one for one in files if one != name])).read_bytes()
        cut = bytes(data[: draw.randrange(len(data))])
        odd = json.dumps(draw.choice(([], 3, {"status": 3}, {"config": []}, {"event": 1}, None))).encode()
        contents = {
            "emptied": b"",
            "truncated": cut,
            "garbage": draw.randbytes(99),
            "swapped": other,
            "deep": b"[" * 9999,
        }
        path.write_bytes(contents.get(how, odd))
    if source == world.group:
        line = json.loads((world.group / "config.json").read_text())
        assert line["rule"] == "krum"
        resume = ["collab", "simulate", *world.commands(folder)[("collab", "simulate")][:-1], str(folder / "run")]
        jobs = [["report", str(folder / "run")], resume]
    else:
        (folder / "settings.json").write_text(json.dumps(world.settings))
        resume = ["tune", "--config", str(folder / "settings.json"), "--resume", "--out", str(folder / "run")]
        verify = ["replay", str(folder / "run"), *(["--verify"] if draw.random() < 0.5 else [])]
        jobs = [["report", str(folder / "run")], verify, resume]
    return Case("damaged", f"{name} {how}", draw.choice(jobs))
