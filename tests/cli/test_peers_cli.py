"""``gradless peers``: keys, manifests, what a start refuses, the status table and the demo."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from gradless.cli import main
from gradless.peers import manifest
from gradless.peers.loopback import free_ports
from gradless.peers.status import Peer, Status
from gradless.peers.status import write as write_status
from gradless.system import locks

pytest.importorskip("zenoh")
NAMES = ("anna", "ben", "cleo", "dora")
TEXT = ("--template", "{text} so", "--label-column", "label", "--labels", "0=bad,1=good")


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object) -> str:
    code, _, stderr = call(*arguments)
    assert code == 2, stderr
    assert stderr.count("\n") == 1, stderr
    return stderr


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name, port in zip(NAMES, free_ports(4), strict=True):
        code, _, stderr = call(
            "peers", "keygen", "--name", name, "--endpoint", f"tls/127.0.0.1:{port}", "--out", folder / name
        )
        assert code == 0, stderr
    return folder


@pytest.fixture(scope="module")
def run(cards, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    files = [cards / name / "card.toml" for name in NAMES]
    code, stdout, stderr = call(
        "peers", "init", *files, "--f", 1, "--model", "tiny-llama", *TEXT, "--steps", 5, "--out", out
    )
    assert code == 0, stderr
    read = manifest.read(out)
    assert f"fingerprint {read.fingerprint}" in stdout
    assert (read.names, read.config.steps, read.config.model) == (NAMES, 5, "tiny-llama")
    assert read.contents.base_sha256
    return out


def test_keygen_says_what_is_public(tmp_path):
    code, stdout, _ = call(
        "peers", "keygen", "--name", "eve", "--endpoint", "tls/a.example:7", "--out", tmp_path / "me"
    )
    assert code == 0
    assert "card.toml" in stdout
    assert "secret" in stdout
    assert "holds an identity already" in refused(
        "peers", "keygen", "--name", "eve", "--endpoint", "tls/a.example:7", "--out", tmp_path / "me"
    )


def test_init_refuses_too_few_peers(cards, tmp_path):
    files = [cards / name for name in NAMES[:3]]
    message = refused("peers", "init", *files, "--model", "tiny-llama", *TEXT, "--out", tmp_path / "run")
    assert "f is 1 of 3 peers" in message
    assert "add 1" in message
    assert not (tmp_path / "run").exists()


def test_init_takes_no_changed_card(cards, tmp_path):
    text = (cards / "anna" / "card.toml").read_text()
    (tmp_path / "card.toml").write_text(text.replace('name = "anna"', 'name = "eve"'))
    files = [cards / name for name in NAMES[1:]]
    message = refused(
        "peers", "init", tmp_path / "card.toml", *files, "--model", "tiny-llama", *TEXT, "--out", tmp_path / "r"
    )
    assert "its signature is wrong" in message


def test_init_for_parameters(cards, tmp_path):
    files = [cards / name for name in NAMES]
    code, _, stderr = call(
        "peers", "init", *files, "--mode", "parameters", "--recipe", "monna-digits", "--out", tmp_path / "run"
    )
    assert code == 0, stderr
    read = manifest.read(tmp_path / "run")
    assert not read.agreed
    assert read.config.dataset == "digits"
    assert read.config.attack == "none"


def test_run_wants_the_fingerprint_compared(cards, run, tmp_path):
    start = ("peers", "run", "--manifest", run, "--identity", cards / "anna", "--out", tmp_path / "RUN")
    assert "nobody can be asked whether the fingerprint is right" in refused_lines(start)
    assert "the manifest's fingerprint is" in refused_lines([*start, "--fingerprint", "0" * 32])
    assert "the manifest's fingerprint is" in refused_lines([*start, "--fingerprint", manifest.read(run).sha256[:8]])
    assert not (tmp_path / "RUN").exists()


def refused_lines(arguments) -> str:
    code, _, stderr = call(*arguments)
    assert code == 2, stderr
    return stderr.splitlines()[-1]


def test_run_refuses_what_is_not_of_the_run(cards, run, tmp_path):
    yes = ("--yes", "--out", tmp_path / "RUN")
    call("peers", "keygen", "--name", "eve", "--endpoint", "tls/127.0.0.1:9", "--out", tmp_path / "eve")
    call("peers", "keygen", "--name", "anna", "--endpoint", "tls/127.0.0.1:9", "--out", tmp_path / "anna")
    for identity, sentence in ((tmp_path / "eve", "has no peer eve"), (tmp_path / "anna", "another key of anna")):
        assert sentence in refused("peers", "run", "--manifest", run, "--identity", identity, *yes)
    assert "cannot be read" in refused("peers", "run", "--manifest", tmp_path, "--identity", cards / "anna", *yes)
    assert "cannot be read" in refused("peers", "run", "--manifest", run, "--identity", tmp_path, *yes)
    other = tmp_path / "other"
    call("peers", "init", *(cards / name for name in NAMES), "--model", "tiny-llama", *TEXT, "--out", other)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / manifest.FILE).write_bytes((other / manifest.FILE).read_bytes())
    assert "the manifest of another run" in refused(
        "peers", "run", "--manifest", run, "--identity", cards / "anna", *yes
    )


def test_an_identity_runs_once(cards, run, tmp_path):
    with locks.claimed(cards / "anna"):
        message = refused(
            "peers", "run", "--manifest", run, "--identity", cards / "anna", "--yes", "--out", tmp_path / "RUN"
        )
    assert "is working on" in message
    assert "--identity" in message


def test_run_refuses_other_base_weights(cards, run, tmp_path):
    (tmp_path / "own.csv").write_text("text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(16)))
    data = (run / manifest.FILE).read_bytes()
    base = manifest.read(run).contents.base_sha256.encode()
    (tmp_path / manifest.FILE).write_bytes(data.replace(base, base[:-4] + b"0000"))
    message = refused_lines(
        ["peers", "run", "--manifest", tmp_path, "--identity", cards / "anna", "--yes", "--train", tmp_path / "own.csv",
         "--test", tmp_path / "own.csv", "--out", tmp_path / "RUN"]
    )  # fmt: skip
    assert "has other weights here" in message
    assert "--model" in message
    assert not (tmp_path / "RUN" / "votes.wal").exists()  # nothing was signed


def test_status_is_a_table_of_what_a_peer_wrote(tmp_path):
    peers = [Peer(name="anna", alive=True, heard=7, led=3), Peer(name="ben", alive=False, banned=4)]
    write_status(tmp_path, Status(run="ab", me="anna", step=7, steps=9, updated=0.0, phase="training", peers=peers))
    code, stdout, _ = call("peers", "status", tmp_path)
    assert code == 0
    assert "anna: step 7 of 9, training" in stdout
    assert "banned from 4" in stdout
    code, stdout, _ = call("peers", "status", tmp_path, "--json")
    assert json.loads(stdout)["peers"][1]["banned"] == 4
    (tmp_path / "status.json").write_text("{")
    assert "holds no run of a peer" in refused("peers", "status", tmp_path)


def test_the_demo_wants_an_empty_folder_and_four(tmp_path):
    (tmp_path / "x").write_text("")
    assert "is not empty" in refused("peers", "demo", "--out", tmp_path)
    assert "at least 4" in refused("peers", "demo", "--peers", 3, "--out", tmp_path / "new")


@pytest.mark.sweep
def test_the_demo_ends_with_equal_weights(tmp_path):
    code, stdout, stderr = call("peers", "demo", "--steps", 30, "--out", tmp_path / "demo", "--json")
    assert code == 0, stderr
    result = json.loads(stdout)
    assert result["equal"]
    assert result["steps"] == 30
    assert list(result["banned"]) == ["peer-3"]
    assert "peer-3 signed two proposals: evidence/peer-3-" in stderr
    assert result["excised"]["weights_sha256"] != result["weights_sha256"]
    assert result["excised"]["changed_steps"] == min(result["banned"].values())  # later values have no row of it
    for run, name in (
        (tmp_path / "demo" / "peer-0" / "run", "model"),
        (tmp_path / "demo" / "without-peer-3", "without"),
    ):
        code, stdout, stderr = call("replay", run, "--save", tmp_path / name)
        assert code == 0, stderr
        assert "gradless" in (tmp_path / name / "README.md").read_text(encoding="utf-8")


def test_a_liar_or_mode_that_there_is_not_is_refused(tmp_path):
    assert "unknown liar 'x' (known: equivocate" in refused("peers", "demo", "--liar", "x", "--out", tmp_path / "out")
    assert "unknown mode 'x' (known: coeff" in refused("peers", "init", "a", "--mode", "x", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "join"])
def test_what_is_refused_at_the_first_start_leaves_nothing(run, cards, tmp_path, command):
    (tmp_path / "own.csv").write_text("text,label\ngood,1\n")
    usual = ("peers", command, "--manifest", run, "--identity", cards / "anna", "--yes", "--out", tmp_path / "out")
    wrong = (*usual, "--train", tmp_path / "own.csv", "--model", "./no/such/model")
    assert "there is no model at ./no/such/model" in refused_lines(wrong)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    assert "there is no model at ./no/such/model" in refused_lines(wrong)
    assert (tmp_path / "out" / "notes").read_text() == "mine"  # what was there stays
