"""Names that are no folder: a typing error is told at once, and the hub is asked one time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradless import lm as models
from gradless.cost import meta_models
from gradless.errors import BadInput
from gradless.lm import hub_ids
from gradless.runs.load_classifier import find
from gradless.system import hub_requests


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Names that the hub, which is out of reach, was asked for; the folder here holds ``runs/reviews``."""
    import huggingface_hub

    calls: list[Any] = []

    def fail(_: Any, name: str, *__: Any, **___: Any) -> bool:
        calls.append(name)
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "file_exists", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    (tmp_path / "runs" / "reviews").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize("load", [models.load, meta_models.load, find])
@pytest.mark.parametrize(
    ("source", "words", "requests"),
    [
        ("runs/review", "no file or folder runs/review: .*did you mean runs/reviews.* runs/review@main asks it", []),
        ("runs/else/review", "no model at runs/else/review: check the path", []),
        ("owner/name", r"the hub cannot be reached \(Name or service not known\): check the path", ["owner/name"]),
        ("runs/review@main", "the hub cannot be reached", ["runs/review"]),
        ("./review", "no model at ./review", []),
    ],
)
def test_what_is_not_there(load: Any, source: str, words: str, requests: list[str], asked: list[Any]) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        load(source)
    assert "\n" not in str(caught.value)
    assert asked == requests


def test_a_folder_that_is_no_model_says_what_it_holds(asked: list[Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"runs has no config\.json: give the folder of a saved model"):
        find("runs")
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / ("config.json" if name == "a" else "adapter_config.json")).write_text("{}")
    with pytest.raises(BadInput, match=r"did you mean runs/a or runs/b\?"):
        find("runs")
    assert asked == []


def test_the_cache_and_the_hub_are_asked_in_this_order(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "/cache/config.json")
    assert hub_ids.checked("runs/review", ()) == ("runs/review", None)
    assert hub_ids.fetched("owner/name", None, "config.json") == Path("/cache/config.json")
    assert asked == []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    assert hub_ids.fetched("owner/name", None, "classifier.json") is None
    monkeypatch.setattr(hub_requests, "has_file", lambda *_, **__: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file, **_: f"/hub/{name}/{file}")
    assert hub_ids.fetched("owner/name", None, "classifier.json") == Path("/hub/owner/name/classifier.json")
