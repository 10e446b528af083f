from __future__ import annotations

import os

import pytest

from gradless.errors import BadInput
from gradless.peers import keys


def test_an_identity_is_read_back(tmp_path):
    card = keys.make("anna", "tls/anna.example.org:7447", tmp_path / "me")
    identity = keys.load(tmp_path / "me")
    assert identity.card == card == keys.read_card(tmp_path / "me" / keys.CARD)
    assert identity.signing.public_key().public_bytes_raw().hex() == card.key
    assert keys.read_card(tmp_path / "me") == card  # a folder stands for its card


def test_secrets_are_for_their_owner_alone(tmp_path):
    keys.make("anna", "tls/127.0.0.1:7447", tmp_path)
    for name in (keys.SIGNING, keys.TLS):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    card = (tmp_path / keys.CARD).read_bytes()
    assert b"PRIVATE" not in card
    assert keys.load(tmp_path).signing.private_bytes_raw().hex().encode() not in card


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("name", [keys.SIGNING, keys.TLS])
def test_keys_that_others_can_read_are_refused(tmp_path, name):
    keys.make("anna", "tls/127.0.0.1:7447", tmp_path)
    (tmp_path / name).chmod(0o640)
    with pytest.raises(BadInput, match=r"open to other users \(mode 640\): run 'chmod 600"):
        keys.load(tmp_path)


def test_an_identity_is_never_overwritten(tmp_path):
    keys.make("anna", "tls/127.0.0.1:7447", tmp_path)
    key = (tmp_path / keys.SIGNING).read_bytes()
    with pytest.raises(BadInput, match="holds an identity already"):
        keys.make("anna", "tls/127.0.0.1:7447", tmp_path)
    assert (tmp_path / keys.SIGNING).read_bytes() == key


@pytest.mark.parametrize("name", ["", "Anna", "a/b", "a*", "-a", "a" * 33, "ä", "a b", "a\n"])
def test_names_that_mean_something_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(BadInput, match="small letters, digits and hyphens"):
        keys.make(name, "tls/127.0.0.1:7447", tmp_path / "me")
    assert not (tmp_path / "me").exists()


@pytest.mark.parametrize(
    "endpoint", ["tcp/a:1", "tls/a", "tls/a:0", "tls/a:65536", "tls/:1", "tls/a:1#x=y", "tls/a b:1", "tls/a:1\n"]
)
def test_endpoints_that_are_none_are_refused(tmp_path, endpoint):
    with pytest.raises(BadInput, match="write tls/HOST:PORT"):
        keys.make("anna", endpoint, tmp_path / "me")


@pytest.mark.parametrize("field", ["name", "key", "endpoint", "request", "rows", "signature"])
def test_a_changed_card_is_refused(tmp_path, field):
    keys.make("anna", "tls/127.0.0.1:7447", tmp_path / "a")
    keys.make("ben", "tls/127.0.0.1:7448", tmp_path / "b")
    a, b = keys.read_card(tmp_path / "a"), keys.read_card(tmp_path / "b")
    values = {name: getattr(a, name) for name in a.__struct_fields__}
    values[field] = 7 if field == "rows" else getattr(b, field)
    (tmp_path / "card.toml").write_text(keys.to_toml(keys.Card(**values)))
    with pytest.raises(BadInput, match=r"its signature is wrong"):
        keys.read_card(tmp_path / "card.toml")


@pytest.mark.parametrize("text", ["", "name = 1", "x = [", "name = 'a'\nother = 1"])
def test_what_is_no_card_is_one_sentence(tmp_path, text):
    (tmp_path / "card.toml").write_text(text)
    with pytest.raises(BadInput, match=r"card\.toml"):
        keys.read_card(tmp_path / "card.toml")


def test_keys_of_two_identities_do_not_mix(tmp_path):
    keys.make("anna", "tls/127.0.0.1:7447", tmp_path / "a")
    keys.make("ben", "tls/127.0.0.1:7448", tmp_path / "b")
    for name in (keys.SIGNING, keys.TLS):
        own = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
        with pytest.raises(BadInput, match="not those of its card"):
            keys.load(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(own)
    (tmp_path / "a" / keys.SIGNING).write_bytes((tmp_path / "a" / keys.TLS).read_bytes())
    with pytest.raises(BadInput, match="holds no key as"):
        keys.load(tmp_path / "a")


def test_a_commitment_goes_onto_the_card_and_its_salt_stays(tmp_path):
    commitment = keys.Commitment(b"r" * 32, 2, b"s" * 32)
    card = keys.make("anna", "tls/127.0.0.1:7447", tmp_path / "a", commitment=commitment)
    assert (card.commitment, card.rows) == ((b"r" * 32).hex(), 2)
    assert (tmp_path / "a" / keys.SALT).read_bytes() == b"s" * 32
    assert (tmp_path / "a" / keys.SALT).stat().st_mode & 0o777 == 0o600


def test_a_run_is_remembered(tmp_path):
    keys.make("anna", "tls/127.0.0.1:7447", tmp_path)
    identity = keys.load(tmp_path)
    assert not identity.has_taken_part(bytes(16))
    identity.take_part(bytes(16))
    identity.take_part(bytes(16))
    assert keys.load(tmp_path).has_taken_part(bytes(16))
    assert not identity.has_taken_part(bytes(15) + b"\1")
