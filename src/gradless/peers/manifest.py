"""The manifest of a run: one public TOML file that fixes who takes part and what a step is.

The first 16 bytes of its SHA-256 name the run in every message, so nothing that was signed in one run counts in
another. It holds the peers' keys, endpoints and certificates, the settings that shape a step, and the rule. Peers
compare its fingerprint over a channel that they trust (by voice): everything else follows from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from gradless import __version__
from gradless.collab.algorithms import COEFFICIENTS
from gradless.collab.config import CollabConfig
from gradless.errors import BadInput
from gradless.peers import certificates, keys, settings
from gradless.peers.claims import MOST_ROWS
from gradless.peers.history import quorum
from gradless.peers.keys import Card, Identity, toml_value
from gradless.system import typed
from gradless.system.atomic import write_text

FILE: Final = "manifest.toml"
PROTOCOL: Final = 1
FEWEST_DIGITS: Final = 16
"""Of a fingerprint that is compared."""
MOST: Final = 64
"""Peers of a complete group: each hears all others."""

Digits = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Pem = Annotated[str, msgspec.Meta(max_length=4000)]


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A peer as the manifest names it; its place in the list is its number."""

    name: str
    key: Digits
    """Public Ed25519 key."""
    endpoint: str
    certificate: Pem
    commitment: Digits | None = None
    """To its training rows."""
    rows: Annotated[int, msgspec.Meta(ge=0, le=MOST_ROWS)] = 0


class Parent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The run whose weights this one begins with."""

    run: Digits
    """SHA-256 of its manifest."""
    digest: Digits
    """Of its last value."""
    weights_sha256: Digits
    steps: Annotated[int, msgspec.Meta(ge=1, le=10**9)]
    """Steps that it took."""


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds; they decide how long faults cost, never what is decided."""

    grace: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 0.2
    """That a leader waits at least for missing rows once n - f are there."""
    base: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 2.0
    """Between repetitions, and the first timer of a round."""


USUAL: Final = Timing()


class Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file as it is written."""

    protocol: int
    gradless: str
    """Release of all peers: bits of a step are those of one release."""
    f: Annotated[int, msgspec.Meta(ge=0, le=MOST)]
    """Peers that may lie."""
    base_sha256: str = ""
    """Weights of the base model; empty where the settings alone decide them."""
    check_every: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 50
    """Steps between two statements of the weights' hash."""
    settings: dict[str, Any]
    timing: Timing = USUAL
    parent: Parent | None = None
    ca: Pem
    peers: Annotated[tuple[Member, ...], msgspec.Meta(min_length=1, max_length=MOST)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that was read."""

    contents: Contents
    sha256: str
    """Of the file's bytes."""
    config: CollabConfig
    """What shapes a step; ``peers`` and ``byzantine`` are the group's."""

    @property
    def run(self) -> bytes:
        """16 bytes that name the run in every message."""
        return bytes.fromhex(self.sha256)[:16]

    @property
    def peers(self) -> tuple[Member, ...]:
        """The members, by number."""
        return self.contents.peers

    @property
    def names(self) -> tuple[str, ...]:
        """The names, by number."""
        return tuple(member.name for member in self.peers)

    @property
    def f(self) -> int:
        """Peers that may lie."""
        return self.contents.f

    @property
    def quorum(self) -> int:
        """Peers whose signatures decide: floor((n + f) / 2) + 1."""
        return quorum(len(self.peers), self.f)

    @property
    def agreed(self) -> bool:
        """Whether peers agree on coefficients; otherwise they mix models of the first n - f."""
        return self.config.payload == COEFFICIENTS

    @property
    def fingerprint(self) -> str:
        """The run's name as people read it to each other."""
        return fingerprint(self.sha256)

    def number(self, identity: Identity) -> int:
        """Return the number of an identity.

        Raises:
            BadInput: the run has no such peer, or another key under that name.
        """
        if identity.name not in self.names:
            known = ", ".join(self.names)
            raise BadInput(f"the run has no peer {identity.name} (it has {known}): take another --identity")
        me = self.names.index(identity.name)
        if self.peers[me].key != identity.card.key:
            raise BadInput(
                f"the run knows another key of {identity.name} than the one in {identity.folder}: use the identity "
                "whose card went into the manifest, or make a new manifest"
            )
        return me


def fingerprint(sha256: str) -> str:
    """Return the first 128 bits of a hash in groups of four digits.

    Example:
        >>> fingerprint("531a95b0beaa" + 52 * "0")
        '531a 95b0 beaa 0000 0000 0000 0000 0000'
    """
    return " ".join(sha256[i : i + 4] for i in range(0, 32, 4))


def make(
    cards: Sequence[Card],
    config: CollabConfig,
    *,
    f: int,
    base_sha256: str = "",
    check_every: int = 50,
    timing: Timing = USUAL,
    days: int = 365,
    parent: Parent | None = None,
) -> bytes:
    """Return the manifest of a new run.

    Args:
        cards: of the peers, in the order of their numbers.
        config: what shapes a step (`gradless.peers.settings.shared`).
        f: peers that may lie.
        base_sha256: of the base model's weights.
        check_every: steps between statements of the weights' hash.
        timing: of the agreement.
        days: that certificates are valid.
        parent: the run that this one continues.

    Raises:
        BadInput: cards that do not go together.
    """
    for kind in ("name", "key", "endpoint"):
        values = [getattr(card, kind) for card in cards]
        for value in values:
            if values.count(value) > 1:
                raise BadInput(f"two cards have the {kind} {value}: give one card of each peer, with its own {kind}")
    hosts = [keys.address(card.endpoint).host for card in cards]
    ca, issued = certificates.issue(
        [(card.name, host, card.request) for card, host in zip(cards, hosts, strict=True)], days=days
    )
    members = tuple(
        Member(
            name=card.name,
            key=card.key,
            endpoint=card.endpoint,
            certificate=certificate,
            commitment=card.commitment or None,
            rows=card.rows,
        )
        for card, certificate in zip(cards, issued, strict=True)
    )
    contents = Contents(
        protocol=PROTOCOL,
        gradless=__version__,
        f=f,
        base_sha256=base_sha256,
        check_every=check_every,
        settings=settings.table(config),
        timing=timing,
        parent=parent,
        ca=ca,
        peers=members,
    )
    return to_toml(contents).encode()


def read(path: Path) -> Manifest:
    """Return the manifest in a file, or in a run's folder.

    Raises:
        BadInput: no manifest, one of another release, or one that contradicts itself.
    """
    return parse(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a manifest's file.

    Raises:
        BadInput: it cannot be read.
    """
    path = path / FILE if path.is_dir() else path
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}): give the manifest that 'gradless peers init' wrote"
        ) from None


def parse(data: bytes, where: object = FILE) -> Manifest:
    """Return the manifest in the bytes of its file.

    Args:
        data: the bytes.
        where: the file, for sentences.

    Raises:
        BadInput: see `read`.
    """
    import tomllib

    with typed.within(where):
        try:
            values = tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise BadInput(f"it is not TOML ({error}): ask for the manifest again") from None
        typed.refuse_odd("the manifest", values)
        _check_release(values)
        try:
            contents = msgspec.convert(values, Contents)
        except msgspec.ValidationError as error:
            raise BadInput(f"it is no manifest of a run ({error}): ask for it again") from None
        for member in contents.peers:
            keys.check_name(member.name), keys.address(member.endpoint)
        for kind in ("name", "key", "endpoint"):
            if len({getattr(member, kind) for member in contents.peers}) < len(contents.peers):
                raise BadInput(f"two peers have one {kind}: ask for the manifest again")
        config = settings.shared(contents.settings, peers=len(contents.peers), f=contents.f)
    return Manifest(contents, hashlib.sha256(data).hexdigest(), config)


def _check_release(values: Mapping[str, Any]) -> None:
    """Refuse a manifest of another protocol or release before its fields are looked at."""
    protocol, release = values.get("protocol"), values.get("gradless")
    if protocol != PROTOCOL:
        raise BadInput(
            f"its protocol is {typed.shown(protocol)}, and this gradless speaks {PROTOCOL}: use the release that made "
            "it"
        )
    if release != __version__:
        raise BadInput(
            f"it was made by gradless {typed.shown(release)}, and this is {__version__}: all peers of a run use one "
            "release, so install that one or make a new manifest"
        )


def to_toml(contents: Contents) -> str:
    """Return the text of a manifest."""
    values = msgspec.to_builtins(contents)
    peers = values.pop("peers")
    lines = ["# A run of gradless peers: public, the same bytes for everybody. Compare its fingerprint by voice."]
    lines += _table(values, "")
    for member in peers:
        lines += ["", "[[peers]]", *_table(member, "peers")]
    return "\n".join(lines) + "\n"


def _table(values: Mapping[str, Any], prefix: str) -> list[str]:
    """Return the lines of a table: plain values first, then the tables in it."""
    plain = {name: value for name, value in values.items() if value is not None and not isinstance(value, dict)}
    lines = [f"{_key(name)} = {toml_value(value)}" for name, value in plain.items()]
    for name, value in values.items():
        if isinstance(value, dict):
            path = f"{prefix}.{_key(name)}" if prefix else _key(name)
            lines += ["", f"[{path}]", *_table(value, path)]
    return lines


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else toml_value(name)


def write(path: Path, data: bytes) -> None:
    """Write a manifest, whole or not at all; one of other bytes is never replaced.

    Raises:
        BadInput: another manifest is there.
    """
    if path.exists():
        if path.read_bytes() == data:
            return
        raise BadInput(f"{path} is the manifest of another run: choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, data.decode())
