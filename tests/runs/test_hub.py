"""What goes to the hub, and what it answers."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import run_helpers as h
from gradless.cli import main
from gradless.errors import BadInput
from gradless.runs import hub, jobs, save
from save_helpers import QUIET, tuned


class FakeApi:
    """Keeps what would go to the hub."""

    calls: list[tuple[str, Any]]
    private: bool | None = None  # of a repository that exists before
    failure: Exception | None = None

    def create_repo(self, repo_id: str, **how: Any) -> str:
        if self.failure:
            raise self.failure
        self.calls.append(("create", (repo_id, how)))
        return f"https://huggingface.co/{repo_id}"

    def model_info(self, repo_id: str) -> Any:
        created = self.calls[-1][1][1]["private"]
        return SimpleNamespace(private=created if self.private is None else self.private)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        files = {str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()}
        self.calls.append(("upload", (repo_id, files, (Path(folder_path) / "README.md").read_text())))


@pytest.fixture
def api(monkeypatch) -> type[FakeApi]:
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_nothing")
    monkeypatch.setattr(FakeApi, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    return FakeApi


@pytest.mark.parametrize("public", [False, True])
def test_push_uploads_the_saved_folder(tmp_path, api, public):
    run = tuned(tmp_path, scheme="lora")
    names = {p.name for p in run.iterdir()}
    arguments = ["replay", str(run), "--push", "me/mine", *(["--public"] if public else [])]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "pushed to https://huggingface.co/me/mine" in done.output
    assert "the ledger and the card name the model and data: tiny-" in done.output
    assert str(tmp_path) not in done.output.split("the ledger and the card name")[1].splitlines()[0]
    (_, created), (_, (repo_id, files, text)) = api.calls
    assert created == ("me/mine", {"exist_ok": True, "private": not public})
    assert repo_id == "me/mine"
    assert {"adapter_model.safetensors", "README.md", "tokenizer.json", "gradless/ledger"} <= files
    assert "# mine\n" in text
    assert '"me/mine"' in text
    assert {p.name for p in run.iterdir()} == names


def test_tune_saves_and_pushes(tmp_path, api):
    jobs.tune(h.config(tmp_path), tmp_path / "run", save=tmp_path / "saved", push="me/mine", reporter=QUIET)
    assert api.calls[-1][1][2] == (tmp_path / "saved" / "README.md").read_text()


def test_the_other_ranks_of_a_public_push_refuse_nothing(tmp_path, api, monkeypatch):
    ranks = SimpleNamespace(rank=1, agreed=contextlib.nullcontext)
    monkeypatch.setattr("gradless.runs.train.tune", lambda *_, **__: {"status": "done"})
    jobs.tune(h.config(tmp_path), tmp_path / "run", push="me/mine", public=True, reporter=QUIET, ranks=ranks)
    assert api.calls == []


def test_a_public_repository_is_not_used_by_accident(tmp_path, api, monkeypatch):
    monkeypatch.setattr(api, "private", False)
    run = tuned(tmp_path)
    with pytest.raises(BadInput, match="me/mine is public: add --public"):
        jobs.replay(run, push="me/mine", reporter=QUIET)
    assert [name for name, _ in api.calls] == ["create"]
    jobs.replay(run, push="me/mine", public=True, reporter=QUIET)
    assert [name for name, _ in api.calls] == ["create", "create", "upload"]


def test_a_private_repository_stays_private(tmp_path, api, monkeypatch):
    run = tuned(tmp_path)
    arguments = ["replay", str(run), "--push", "me/mine", "--public"]
    assert "stays private" not in CliRunner().invoke(main, arguments).output
    monkeypatch.setattr(api, "private", True)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    assert "me/mine exists and stays private" in done.output


def refusal(code: int) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    http = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]
    return HfHubHTTPError(
        "Refused.\nLong story", response=http.Response(code, request=http.Request("POST", "http://x"))
    )


@pytest.mark.parametrize(
    ("failure", "parts"),
    [
        (lambda: ConnectionError("Name or service not known"), ("could not be reached", "check the network")),
        (lambda: refusal(403), ("refused to write me/mine (HTTP 403)", "hf auth login")),
        (lambda: refusal(500), ("refused me/mine", "try again with 'gradless replay RUN_DIR --push me/mine'")),
    ],
)
def test_what_the_hub_says_is_one_sentence(tmp_path, api, monkeypatch, failure, parts):
    monkeypatch.setattr(api, "failure", failure())
    with pytest.raises(BadInput) as caught:
        hub.push(tmp_path, "me/mine", say=lambda line: None)
    assert "\n" not in str(caught.value)
    assert "Long story" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_what_can_be_known_without_the_hub_is_said_first(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with pytest.raises(BadInput, match="hf auth login"):
        jobs.tune(h.config(tmp_path), tmp_path / "run", push="me/mine", reporter=QUIET)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_nothing")
    with pytest.raises(BadInput, match=r"is no name on the hub .*: write OWNER/NAME"):
        save.check(None, "a//b")
    with pytest.raises(BadInput, match="write OWNER/mine"):
        save.check(None, "mine")
    with pytest.raises(BadInput, match="add --push OWNER/NAME"):
        save.check(None, None, public=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set: unset it"):
        save.check(None, "me/mine")


def test_a_run_that_is_saved_opens_no_connection(tmp_path, monkeypatch):
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for scheme in ("full", "lora", "prompt"):
        config = h.config(tmp_path, scheme=scheme)
        jobs.tune(
            config, tmp_path / scheme, save=tmp_path / f"{scheme}-saved", tensorboard=tmp_path / "tb", reporter=QUIET
        )
        assert (tmp_path / f"{scheme}-saved" / "README.md").exists()
