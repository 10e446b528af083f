"""Messages of peers who exchange parameters: a fixed binary schema with exact lengths.

Little-endian. A signature covers `DOMAIN` and everything before it in its message; ``head`` is that of
`gradless.peers.schema`, whose ``round`` is the number of the exchange in its step::

    MODEL   head | u32 D | 32 SHA-256 of the vector | 64 signature | D f32        126 + 4 D bytes
    ECHO    head | u16 count | count x (u16 sender | 32 SHA-256) | 64 signature   92 + 34 count
    ASK     head                                                                  26, unsigned

Every reader here takes bytes from strangers: it returns what the schema allows or raises `Malformed`, and nothing else.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradless.peers.schema import HEAD, SIGNATURE, VERSION, Foreign, Malformed
from gradless.peers.signing import Ring

DOMAIN: Final = b"gradless-peers-vectors-1\0"
MODEL, ECHO, ASK = 32, 33, 34  # kinds, in the byte after the version
WIDTH, COUNT, ENTRY = struct.Struct("<I32s"), struct.Struct("<H"), struct.Struct("<H32s")
MODEL_SIGNED: Final = HEAD.size + WIDTH.size
MODEL_SIZE: Final = MODEL_SIGNED + SIGNATURE

Slot = tuple[int, int]
"""(step, number of the exchange in it)."""


class Model(NamedTuple):
    """A vector as its sender signed it."""

    sender: int
    slot: Slot
    digest: bytes
    data: bytes
    """The whole message."""

    def vector(self) -> Tensor:
        """Return the vector, float32 [D]."""
        return torch.from_numpy(np.frombuffer(self.data, "<f4", offset=MODEL_SIZE).astype(np.float32))


class Echo(NamedTuple):
    """Digests of vectors that a peer has received."""

    sender: int
    slot: Slot
    digests: Mapping[int, bytes]
    """By the sender of the vector."""


class Ask(NamedTuple):
    """Somebody wants to hear again what was said in an exchange."""

    sender: int
    slot: Slot


class Format(NamedTuple):
    """What all messages of a run have in common."""

    run: bytes  # 16
    peers: int
    width: int  # D

    def largest(self) -> int:
        """Return the bytes of the largest message."""
        return max(MODEL_SIZE + 4 * self.width, HEAD.size + COUNT.size + self.peers * ENTRY.size + SIGNATURE)

    def model(self, ring: Ring, me: int, slot: Slot, row: Tensor) -> Model:
        """Sign a vector, float32 [D]."""
        vector = row.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False).tobytes()
        sha256 = hashlib.sha256(vector).digest()
        body = HEAD.pack(VERSION, MODEL, self.run, me, *slot) + WIDTH.pack(len(vector) // 4, sha256)
        return Model(me, slot, sha256, body + ring.sign(DOMAIN + body) + vector)

    def echo(self, ring: Ring, me: int, slot: Slot, digests: Mapping[int, bytes]) -> bytes:
        """Sign the digests of received vectors."""
        entries = b"".join(ENTRY.pack(*entry) for entry in sorted(digests.items()))
        body = HEAD.pack(VERSION, ECHO, self.run, me, *slot) + COUNT.pack(len(digests)) + entries
        return body + ring.sign(DOMAIN + body)

    def ask(self, me: int, slot: Slot) -> bytes:
        """Ask all to say again what they said in an exchange."""
        return HEAD.pack(VERSION, ASK, self.run, me, *slot)

    def sender(self, data: bytes) -> int:
        """Return who a message claims to be from, before anything costly is done with it.

        Raises:
            Malformed: no message of a peer.
            Foreign: one of another run.
        """
        if not HEAD.size <= len(data) <= self.largest():
            raise Malformed("length")
        version, kind, run, sender, _, _ = HEAD.unpack_from(data)
        if version != VERSION or kind not in (MODEL, ECHO, ASK):
            raise Malformed("head")
        if run != self.run:
            raise Foreign("run")
        if sender >= self.peers:
            raise Malformed("head")
        return int(sender)

    def named(self, data: bytes) -> tuple[Slot, bytes] | None:
        """Return the slot and the digest that a vector names, of a message that `sender` took; nothing is checked.

        None if it is no vector.
        """
        _, kind, _, _, step, number = HEAD.unpack_from(data)
        if kind != MODEL or len(data) < MODEL_SIZE:
            return None
        return (step, number), WIDTH.unpack_from(data, HEAD.size)[1]

    def parse(self, data: bytes, ring: Ring) -> Model | Echo | Ask:
        """Read one message and check its signature; of a vector, its digest too.

        Raises:
            Malformed: it does not follow the schema to the byte, or is not what its sender signed.

        Cost: a signature check, and one SHA-256 of a vector.
        """
        self.sender(data)
        _, kind, _, sender, step, number = HEAD.unpack_from(data)
        if kind == MODEL:
            return self._model(data, ring, sender, (step, number))
        if kind == ASK:
            if len(data) != HEAD.size:
                raise Malformed("ask length")
            return Ask(sender, (step, number))
        return self._echo(data, ring, sender, (step, number))

    def _model(self, data: bytes, ring: Ring, sender: int, slot: Slot) -> Model:
        if len(data) != MODEL_SIZE + 4 * self.width:
            raise Malformed("model length")
        width, sha256 = WIDTH.unpack_from(data, HEAD.size)
        if width != self.width or hashlib.sha256(memoryview(data)[MODEL_SIZE:]).digest() != sha256:
            raise Malformed("model digest")
        _check(ring, sender, data[:MODEL_SIGNED], data[MODEL_SIGNED:MODEL_SIZE])
        return Model(sender, slot, sha256, data)

    def _echo(self, data: bytes, ring: Ring, sender: int, slot: Slot) -> Echo:
        start = HEAD.size + COUNT.size
        if len(data) < start:
            raise Malformed("echo length")
        end = start + COUNT.unpack_from(data, HEAD.size)[0] * ENTRY.size
        if len(data) != end + SIGNATURE:
            raise Malformed("echo length")
        entries = list(ENTRY.iter_unpack(data[start:end]))
        senders = [one for one, _ in entries]
        if sorted(set(senders)) != senders or (senders and senders[-1] >= self.peers):
            raise Malformed("echo senders")
        _check(ring, sender, data[:end], data[end:])
        return Echo(sender, slot, dict(entries))


def _check(ring: Ring, sender: int, body: bytes, signature: bytes) -> None:
    if not ring.verify(sender, DOMAIN + body, signature):
        raise Malformed("signature")
