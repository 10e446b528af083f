"""No number in the README or on the pages lacks its file; the check itself is tried on small texts."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest

from docs_blocks import ROOT
from sourced_numbers import ALLOWED, files_named, unsourced

RESULTS = sorted(path.name for path in (ROOT / "benchmarks" / "results").iterdir())
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
LOG = "docs/log.md"  # what was tried and not kept: its numbers are of runs that are gone


def test_every_number_has_its_file():
    lacking = [one for page, text in PAGES.items() if page != LOG for one in unsourced(page, text, RESULTS, ALLOWED)]
    assert not lacking, "\n".join(map(str, lacking))


def test_every_exception_is_needed_and_has_a_reason():
    for key, reason in ALLOWED.items():
        page = key.partition(": ")[0]
        others = {other: why for other, why in ALLOWED.items() if other != key}
        assert unsourced(page, PAGES[page], RESULTS, others), f"{key} is not needed: remove it"
        assert len(reason) > 5, key


def test_every_file_that_a_page_names_exists():
    measured = PAGES["docs/reference/measured.md"]
    rows = [row.split("|")[1] for row in measured.splitlines() if row.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`([\w.-]+\.(?:jsonl?|md|txt|toml))`", row)]
    assert set(listed) == set(RESULTS)
    for page, text in PAGES.items():
        for name in re.findall(r"benchmarks/results/([\w*.-]*\w)", text):
            mine = name.startswith("mine") or page == "docs/reference/measured.md"
            assert mine or any(fnmatchcase(file, name) for file in RESULTS), f"{page} names benchmarks/results/{name}"


FILES = ["study.jsonl", "cpu-step-a.json", "cpu-step-b.json"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("MeZO has 0.786 ± 0.012.", ["0.786", "± 0"]),
        ("It takes 7 % more.", ["7 %"]),
        ("It is 8 times as fast, or 1.3 x.", ["8 times", "1.3"]),
        ("| a | 0.5 |\n|---|---|\n| b | 12.5 |", ["0.5", "12.5"]),
        ("# A\n\nFrom `study.jsonl`: 0.5.\n\n# B\n\nAnd 0.6.", ["0.6"]),
        ("From `other.jsonl`: 0.5.", ["0.5"]),
        ("- From `x.py`: 0.5.\n- 1,234.5", ["0.5", "1,234.5"]),
        ("```text\n0.5\n```\n\n0.7", ["0.7"]),
        ("<!-- fields: study -->\n| 0.5 |\n<!-- end -->\n0.7", ["0.7"]),
        ("From `study.jsonl`: 0.5 ± 0.1.", []),
        ("From [a file](../../benchmarks/results/study.jsonl), 0.5.", []),
        ("From `cpu-step-*.json`, 0.5.", []),
        ("<!-- file: benchmarks/results/study.jsonl -->\n[x](y)\n<!-- end -->\nAnd 0.5.", []),
        ("Python 3.11, torch 2.13.0, arXiv 2305.17333, TLS 1.3, Apache-2.0, `--lr 0.5`, [a](b-0.5.md), 20 steps.", []),
    ],
)
def test_numbers_of_small_texts(text, numbers):
    assert [one.number for one in unsourced("page.md", text, FILES)] == numbers


def test_an_exception_holds_for_its_paragraph_alone():
    text = "A limit of 1.5.\n\nA result of 0.5."
    left = unsourced("page.md", text, FILES, {"page.md: A limit of": "a limit"})
    assert [one.number for one in left] == ["0.5"]
    assert "name its file, or remove it" in str(left[0])
    assert len(unsourced("other.md", text, FILES, {"page.md: A limit of": "a limit"})) == 2


def test_a_star_stands_for_files_that_are_there():
    assert files_named("`cpu-step-*.json` and `nothing-*.json`", FILES) == set(FILES[1:])


def test_no_result_file_holds_a_path_of_the_machine_that_made_it():
    """Data of published settings lie beside their grid."""
    absolute = re.compile(r'^(?:data|model|train|dev|test) = "/.*$', re.M)
    files = [*(ROOT / "benchmarks" / "results").glob("*.toml"), *(ROOT / "benchmarks" / "grids").glob("*.toml")]
    assert files
    assert {path.name: lines for path in files if (lines := absolute.findall(path.read_text()))} == {}
