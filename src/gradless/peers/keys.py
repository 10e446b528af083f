"""A peer's identity: an Ed25519 key that signs, a TLS key, and a card that tells others both public halves.

The secret halves never leave the folder that `make` writes. The card is signed with the Ed25519 key, so that nobody can
put another's TLS key or endpoint under a name; who carries cards to the person who makes the manifest may be anybody.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec

from gradless.errors import BadInput
from gradless.peers.claims import MOST_ROWS
from gradless.system import typed
from gradless.system.atomic import write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNING: Final = "signing.pem"
TLS: Final = "tls.pem"
SALT: Final = "salt"
"""32 bytes that keep a commitment from telling rows that somebody guesses."""
SALT_BYTES: Final = 32
CARD: Final = "card.toml"
RUNS: Final = "runs"
"""Folder with a file for each run in which the identity has signed."""
NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
"""Names stand in certificates, in key expressions of the network and in names of files."""
ENDPOINT: Final = re.compile(r"tls/(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")
HEX: Final = re.compile(r"[0-9a-f]{64}")
DOMAIN: Final = b"gradless-peers-card-1\0"
LONGEST_REQUEST: Final = 4000

Text = Annotated[str, msgspec.Meta(max_length=LONGEST_REQUEST)]


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a peer tells the others before a run; all of it is public."""

    name: Text
    key: Text
    """Public half of the Ed25519 key, 64 hexadecimal digits."""
    endpoint: Text
    """Where it listens: tls/HOST:PORT."""
    request: Text
    """Signing request of its TLS key, PEM."""
    commitment: Text = ""
    """To its training rows (`gradless.peers.claims`), 64 hexadecimal digits; empty: none."""
    rows: Annotated[int, msgspec.Meta(ge=0, le=MOST_ROWS)] = 0
    """Training rows that it is committed to."""
    signature: Text
    """Of everything above, with its key; hexadecimal."""

    def signed(self) -> bytes:
        """Return what the signature covers; no field holds NUL."""
        fields = (self.name, self.key, self.endpoint, self.request, self.commitment, str(self.rows))
        return DOMAIN + "\0".join(fields).encode()


class Identity(NamedTuple):
    """A peer's own keys."""

    folder: Path
    card: Card
    signing: Ed25519PrivateKey
    tls: EllipticCurvePrivateKey

    @property
    def name(self) -> str:
        """The name on the card."""
        return self.card.name

    def has_taken_part(self, run: bytes) -> bool:
        """Return whether this identity has ever begun to take part in a run, from whatever folder."""
        return (self.folder / RUNS / run.hex()).exists()

    def take_part(self, run: bytes) -> None:
        """Note that this identity takes part in a run; written before anything is signed in it."""
        path = self.folder / RUNS / run.hex()
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_text(path, "signed in this run: a later start needs votes.wal, or asks the group\n")


class Commitment(NamedTuple):
    """To training rows, which tells nothing about them (`gradless.peers.claims`)."""

    root: bytes
    """32 bytes that go onto the card."""
    rows: int
    salt: bytes
    """32 secret bytes."""


class Address(NamedTuple):
    """Where a peer listens."""

    host: str
    """A name, or an IP address without brackets."""
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only processes of the same machine reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


def address(endpoint: str) -> Address:
    """Return host and port of ``tls/HOST:PORT``.

    Raises:
        BadInput: anything else.

    Example:
        >>> address("tls/anna.example.org:7447")
        Address(host='anna.example.org', port=7447)
    """
    match = ENDPOINT.fullmatch(endpoint)
    if not match or not 0 < int(match["port"]) < 2**16 or len(endpoint) > 260:
        raise BadInput(
            f"the endpoint {typed.shown(endpoint)} is not one: write tls/HOST:PORT, e.g. tls/anna.example.org:7447"
        )
    return Address(match["host"].strip("[]"), int(match["port"]))


def check_name(name: str) -> str:
    """Return a peer's name.

    Raises:
        BadInput: it holds something else than small letters, digits and hyphens, or more than 32 of them.
    """
    if not NAME.fullmatch(name):
        raise BadInput(f"the name {typed.shown(name)} cannot be used: take 1 to 32 small letters, digits and hyphens")
    return name


def make(name: str, endpoint: str, folder: Path, *, commitment: Commitment | None = None) -> Card:
    """Make a peer's identity and write it to a folder; returns its card.

    Args:
        name: of the peer.
        endpoint: tls/HOST:PORT, where the others will reach it.
        folder: new, or without an identity.
        commitment: to its training rows, if it makes one.

    Raises:
        BadInput: a name or endpoint that cannot be used, or a folder that holds an identity.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    from gradless.peers import certificates

    check_name(name), address(endpoint)
    for file in (SIGNING, TLS, SALT, CARD):
        if (folder / file).exists():
            raise BadInput(f"{folder} holds an identity already ({file}): choose another --out")
    signing, tls = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    card = Card(
        name=name,
        key=signing.public_key().public_bytes_raw().hex(),
        endpoint=endpoint,
        request=certificates.request(name, tls),
        commitment=commitment.root.hex() if commitment else "",
        rows=commitment.rows if commitment else 0,
        signature="",
    )
    card = msgspec.structs.replace(card, signature=signing.sign(card.signed()).hex())
    secrets = {SIGNING: certificates.private_pem(signing), TLS: certificates.private_pem(tls)}
    if commitment is not None:
        secrets[SALT] = commitment.salt
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for file, data in secrets.items():
            _write_secret(folder / file, data)
        write_text(folder / CARD, to_toml(card))  # last: a folder without a card is no identity
    except OSError:
        for file in secrets:
            (folder / file).unlink(missing_ok=True)
        raise
    return card


def load(folder: Path) -> Identity:
    """Return the identity in a folder.

    Raises:
        BadInput: a file is missing or damaged, readable by other users, or belongs to another identity.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    card = read_card(folder / CARD)
    keys: list[Any] = []
    for file, kind in ((SIGNING, ed25519.Ed25519PrivateKey), (TLS, ec.EllipticCurvePrivateKey)):
        path = folder / file
        data = _read_secret(path)
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, kind):
            raise BadInput(f"{path} holds no key as 'gradless peers keygen' writes it: restore it from a copy")
        keys.append(key)
    signing, tls = keys
    from gradless.peers import certificates

    same = signing.public_key().public_bytes_raw().hex() == card.key
    if not same or certificates.requested_key(card.request) != certificates.public_der(tls.public_key()):
        raise BadInput(f"the keys in {folder} are not those of its {CARD}: restore the files of one identity")
    return Identity(folder, card, signing, tls)


def read_card(path: Path) -> Card:
    """Return a card whose signature and signing request are right.

    Raises:
        BadInput: it is no card, or one that somebody has changed.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from gradless.peers import certificates

    if path.is_dir():
        path = path / CARD
    values = typed.load(path)
    with typed.within(path):
        typed.refuse_odd("the card", values)
        try:
            card = msgspec.convert(values, Card)
        except msgspec.ValidationError as error:
            raise BadInput(f"it is no card of a peer ({error}): give what 'gradless peers keygen' wrote") from None
        check_name(card.name), address(card.endpoint)
        damaged = BadInput("the card was changed or damaged (its signature is wrong): ask its owner for it again")
        if not HEX.fullmatch(card.key) or (card.commitment and not HEX.fullmatch(card.commitment)):
            raise damaged
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(card.key)).verify(
                bytes.fromhex(card.signature), card.signed()
            )
        except (InvalidSignature, ValueError):
            raise damaged from None
        certificates.requested_key(card.request)
    return card


def to_toml(card: Card) -> str:
    """Return the text of a card's file."""
    lines = [f"{name} = {toml_value(getattr(card, name))}" for name in card.__struct_fields__]
    return "# Public: hand it to the person who runs 'gradless peers init'.\n" + "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return a value as TOML; text of several lines, such as PEM, stays readable."""
    if isinstance(value, str):
        lines = "\n" in value and "'" not in value and "\\" not in value
        return f"'''\n{value}'''" if lines else msgspec.json.encode(value).decode()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _write_secret(path: Path, data: bytes) -> None:
    """Write a file that no other user can read, not even while it is written."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _read_secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise BadInput(f"{path} is open to other users (mode {mode:o}): run 'chmod 600 {path}'")
            return file.read(LONGEST_REQUEST)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}): give the folder that 'gradless peers keygen' wrote"
        ) from None
