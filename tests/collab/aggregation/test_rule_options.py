"""Rules by name: their options, and what is refused with the condition or the fix."""

from __future__ import annotations

import math
import re

import pytest
import torch

from collab_helpers import normal
from gradless.collab.aggregators import (
    AGGREGATORS,
    PRE_AGGREGATORS,
    Aggregator,
    Entry,
    bulyan,
    compose,
    geometric_median,
    mda,
    multi_krum,
    named,
    nna,
    options_of,
    self_centred_clipping,
    smea,
    trimmed_mean,
)
from gradless.collab.attacks import ATTACKS, Attack, mean_of_honest, no_extras, to_all
from gradless.collab.attacks import Entry as AttackEntry
from gradless.collab.attacks import named as attack_named
from gradless.errors import BadInput


def test_the_condition_is_on_the_buckets():
    rule = named("bucketing+median", f=2, size=2)
    rule.check(9)  # five means, two of which may be spoilt
    with pytest.raises(BadInput, match=re.escape("median with f = 2 needs n > 2 f")):
        rule.check(8)


def test_bad_arguments_are_refused():
    for make in (nna, trimmed_mean, bulyan, mda):
        for f in (-1, 1.5, True):
            with pytest.raises(BadInput, match="whole number"):
                make(f=f)
    with pytest.raises(BadInput, match="did you mean 'krum'"):
        named("krumm", f=1)
    with pytest.raises(BadInput, match="unknown option of krum"):
        named("krum", f=1, size=2)
    with pytest.raises(BadInput, match="mean has no options"):
        named("mean", f=0, size=2)
    with pytest.raises(BadInput, match="centred-clipping needs radius"):
        named("centred-clipping", f=1)
    with pytest.raises(BadInput, match="needs a radius, or f"):
        self_centred_clipping()
    with pytest.raises(BadInput, match="at most n - f = 4"):
        multi_krum(f=2, k=5)(normal(6, 2))
    with pytest.raises(BadInput, match="count from 0"):
        nna(f=1)(normal(4, 2), pivot=4)
    with pytest.raises(BadInput, match="start"):
        geometric_median(start="nowhere")


def test_a_stage_may_come_twice():
    rows = normal(9, 6)
    twice, once = named("nnm+nnm+krum", f=2), named("nnm+krum", f=2)
    assert twice.name == "nnm+nnm+krum"
    assert len(twice.stages) == 2
    assert torch.allclose(twice(rows), once(PRE_AGGREGATORS["nnm"].make(f=2)(rows)))
    assert not torch.allclose(twice(rows), once(rows))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("centred-clipping", {"radius": 2}),
        ("self-centred-clipping", {"radius": 0.5, "iterations": 3}),
        ("bucketing+krum", {"size": 2}),
        ("clipping+mean", {"norm": 1.5}),
        ("nna", {"keep": "all"}),
        ("nna", {"keep": 4}),
    ],
)
def test_options_of_a_rule_by_name(name, options):
    assert set(options) <= set(options_of(name))
    assert not {"f", "n"} & set(options_of(name))
    rows = normal(9, 6)
    rule = named(name, f=1, n=9, **options)
    parts = [{**AGGREGATORS, **PRE_AGGREGATORS}[part] for part in name.split("+")]
    facts = {"f": 1, "n": 9, **options}
    stages = [part.make(**{key: facts[key] for key in part.options() if key in facts}) for part in parts]
    assert torch.equal(rule(rows, pivot=3), compose(*stages)(rows, pivot=3))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("centred-clipping", {"radius": "wide"}, "radius of centred-clipping is 'wide'"),
        ("centred-clipping", {"radius": [1]}, "radius of centred-clipping"),
        ("self-centred-clipping", {"radius": True}, "radius of self-centred-clipping is True"),
        ("centred-clipping", {"radius": math.inf}, "give a finite number above 0"),
        ("centred-clipping", {"name": 3}, "unknown option of centred-clipping 'name'"),
        ("bucketing+krum", {"size": 1.5}, "size of bucketing is 1.5"),
        ("bucketing+krum", {}, "bucketing needs size"),
        ("clipping+mean", {"norm": "one"}, "norm of clipping"),
        ("nna", {"keep": "most"}, "give a whole number of at least 1 or received or all"),
        ("nna", {"keep": [3]}, "give a whole number of at least 1 or received or all"),
        ("geometric-median", {"tolerance": "low"}, "tolerance of geometric-median"),
        ("geometric-median", {"start": ["rows"]}, "start of geometric-median"),
        ("multi-krum", {"k": "all"}, "k of multi-krum"),
    ],
)
def test_values_that_a_rule_cannot_take_are_refused(name, options, sentence):
    with pytest.raises(BadInput, match=sentence):
        named(name, f=1, n=9, **options)


def halfway(*, pull: float = 0.5, whole: bool = False, scale: float | str = 1.0) -> Aggregator:
    return Aggregator.dense("halfway", lambda rows, pivot: pull * rows[pivot] + (1 - pull) * rows.mean(0))


def upwards(*, strength: float = 1.0) -> Attack:
    return Attack(
        "upwards", no_extras, lambda context, s, state: to_all(context, s * mean_of_honest(context)), 2 * strength
    )


def early(*, pull: float = 0.5) -> Aggregator:
    rest = 1 - pull
    return Aggregator.dense("early", lambda rows, pivot: rest * rows[pivot])


def test_a_part_of_ones_own_need_not_check_that_its_numbers_are_numbers(monkeypatch):
    for name, make in (("halfway", halfway), ("early", early)):
        monkeypatch.setitem(AGGREGATORS, name, Entry(make, "", "", "", ""))
    monkeypatch.setitem(ATTACKS, "upwards", AttackEntry(upwards, "", "", "", "", "", ""))
    for rule, option, value in (("halfway", "pull", "x"), ("nnm+halfway", "pull", [1]), ("early", "pull", "x")):
        with pytest.raises(BadInput, match=rf"pull of {rule.rpartition('+')[2]} is .*: give a finite number"):
            named(rule, f=1, **{option: value})
    with pytest.raises(BadInput, match="whole of halfway is 'yes'"):
        named("halfway", whole="yes")
    with pytest.raises(BadInput, match="strength of upwards is 'x': give a finite number"):
        attack_named("upwards", strength="x")
    assert named("halfway", pull=1, whole=True, scale="auto").name == "halfway"
    assert attack_named("upwards", strength=3).strength == 6


def test_too_many_subsets_are_refused_with_their_number():
    with pytest.raises(BadInput, match=re.escape(f"{math.comb(40, 10):,} subsets")):
        smea(f=10)(normal(40, 2))
    with pytest.raises(BadInput, match=re.escape(f"{math.comb(80, 30):,} subsets")):
        mda(f=30)(normal(80, 2))
    assert mda(f=12)(normal(40, 5)).shape == (5,)  # 5.6e9 subsets, but no need to look at them


def test_every_entry_says_what_it_is():
    for name, entry in {**AGGREGATORS, **PRE_AGGREGATORS}.items():
        assert entry.summary
        assert entry.condition
        assert entry.cost
        assert entry.make.__doc__
        for heading in ("Breakdown", "Cost"):
            assert heading in entry.make.__doc__, name
        if entry.paper:
            assert entry.paper.split()[0] in entry.make.__doc__, name
