from __future__ import annotations

import datetime

import pytest

from gradless.errors import BadInput
from gradless.peers import certificates, keys, manifest, mixing, settings
from peers_helpers import NAMES, identities, manifest_of, text


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    return identities(tmp_path_factory.mktemp("identities"))


def test_a_manifest_is_read_back(group):
    data = text(group)
    read = manifest.parse(data)
    assert read.names == NAMES
    assert [member.key for member in read.peers] == [one.card.key for one in group]
    assert (read.f, read.quorum, read.agreed) == (1, 3, True)
    assert read.config.rule == mixing.usual(4)
    assert read.config == settings.shared(settings.table(read.config), peers=4, f=1)
    assert manifest.to_toml(read.contents).encode() == data


def test_a_changed_byte_is_another_run(group):
    data = text(group)
    other = data.replace(b"seed = 3", b"seed = 4")
    assert manifest.parse(other).run != manifest.parse(data).run
    assert manifest.parse(data).run.hex() == manifest.parse(data).sha256[:32]
    assert manifest.parse(data).fingerprint.replace(" ", "") == manifest.parse(data).sha256[:32]


def test_two_manifests_of_one_group_are_two_runs(group):
    assert manifest_of(group).run != manifest_of(group).run  # the CA is new every time


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"protocol = 1", b"protocol = 2", "its protocol is 2, and this gradless speaks 1"),
        (b'gradless = "', b'gradless = "9', "all peers of a run use one release"),
        (b"f = 1", b"f = 2", "agreement stands at most 1 liars, so lower --f or add 3 peers"),
        (b"seed = 3", b'seed = 3\nattack = "alie"', "attack is each peer's own"),
        (b"seed = 3", b"seeds = 3", "unknown setting 'seeds'"),
        (b"seed = 3", b"seed = -3", "seed is -3"),
        (b'name = "ben"', b'name = "anna"', "two peers have one name"),
        (b'name = "ben"', b'name = "be/n"', "small letters, digits and hyphens"),
        (b"check_every = 50", b"check_every = 0", "no manifest of a run"),
        (b'scheme = "full"', b'scheme = "prefix"', "begins with numbers that differ between machines"),
        (b"queries = 4", b"queries = 5000", "rows of 4 peers"),
        (b"[timing]", b"[timing", "not TOML"),
        (b"grace = 0.2", b"grace = nan", "grace is nan"),
    ],
)
def test_bad_manifests_are_one_sentence(group, old, new, sentence):
    data = text(group)
    assert old in data
    with pytest.raises(BadInput) as refused:
        manifest.parse(data.replace(old, new, 1))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rules_that_differ_in_bits_are_refused(group):
    for rule in ("nna", "geometric-median"):
        with pytest.raises(BadInput):
            text(group, rule=rule)


def test_cards_must_be_of_different_peers(group, tmp_path):
    cards = [one.card for one in group]
    config = settings.shared(dict(settings.table(manifest_of(group).config)), peers=4, f=1)
    for kind, change in (("name", {"name": "anna"}), ("key", {"key": cards[0].key})):
        other = [*cards[:3], keys.Card(**{**{f: getattr(cards[3], f) for f in cards[3].__struct_fields__}, **change})]
        with pytest.raises(BadInput, match=f"two cards have the {kind}"):
            manifest.make(other, config, f=1)


def test_an_identity_must_be_the_manifest_s(group, tmp_path):
    run = manifest_of(group)
    assert [run.number(one) for one in group] == [0, 1, 2, 3]
    keys.make("anna", "tls/127.0.0.1:7447", tmp_path / "a")
    keys.make("eve", "tls/127.0.0.1:7447", tmp_path / "e")
    with pytest.raises(BadInput, match="the run knows another key of anna"):
        run.number(keys.load(tmp_path / "a"))
    with pytest.raises(BadInput, match="the run has no peer eve"):
        run.number(keys.load(tmp_path / "e"))


def test_a_manifest_is_never_replaced_by_another(group, tmp_path):
    first, second = text(group), text(group)
    manifest.write(tmp_path / "run" / manifest.FILE, first)
    manifest.write(tmp_path / "run" / manifest.FILE, first)
    with pytest.raises(BadInput, match="the manifest of another run"):
        manifest.write(tmp_path / "run" / manifest.FILE, second)
    assert (tmp_path / "run" / manifest.FILE).read_bytes() == first


def shifted(days):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=days)

    return Clock


def test_certificates_are_checked_against_the_clock(group, monkeypatch):
    run = manifest_of(group)
    own = (run.contents.ca, run.peers[0].certificate, "anna", certificates.public_der(group[0].tls.public_key()))
    certificates.check(*own)
    for days, sentence in ((-3, "is not valid before"), (40, "ended on")):
        monkeypatch.setattr(datetime, "datetime", shifted(days))
        with pytest.raises(BadInput, match=sentence):
            certificates.check(*own)
        monkeypatch.undo()


def test_certificates_of_others_are_refused(group):
    one, two = manifest_of(group), manifest_of(group)
    key = certificates.public_der(group[0].tls.public_key())
    with pytest.raises(BadInput, match="is not one of this run's CA"):
        certificates.check(one.contents.ca, two.peers[0].certificate, "anna", key)
    with pytest.raises(BadInput, match="is for another name or key"):
        certificates.check(one.contents.ca, one.peers[1].certificate, "anna", key)
    with pytest.raises(BadInput, match="is for another name or key"):
        certificates.check(one.contents.ca, one.peers[1].certificate, "ben", key)


def test_parameters_are_mixed_by_rules_with_a_pivot_too(group):
    run = manifest_of(
        group,
        payload="parameters",
        model=None,
        own={},
        dataset="digits",
        algorithm="monna",
        momentum=0.9,
        scheme="lora",
        lr=0.5,
        queries=4,
        eps=None,
    )
    assert not run.agreed
    assert run.config.dataset == "digits"
