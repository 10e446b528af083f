"""Messages of the peers: a fixed binary schema with exact lengths.

Little-endian. A signature covers `DOMAIN` and everything before it in its message::

    head       u8 version | u8 kind | 16 run | u16 sender | u32 step | u16 round                  26 bytes
    ROW        head | u8 flags | u16 K | 16 chain | K f32 | 64 signature                          109 + 4 K
    PREVOTE    head | 32 digest | 64 signature | 64 signature of the leader on its PROPOSAL       186
    PRECOMMIT  head | 32 digest | 64 signature                                                    122
    TIMEOUT    head | i32 round | 32 digest | 64 signature [| u16 length | certificate | value]   126 (+ ...)
    PROPOSAL   head | 32 digest | 64 signature | u32 length | value | justification               126 + value (+ ...)
    DECIDED    head | u32 length | value | certificate                    the certificate is its signature
    HELLO      head | 8 nonce                                             step: the first that the sender lacks
    ROWS       head | u16 count | rows                                    rows that their own senders signed
    ANSWER     head | 8 nonce | 32 digest | 64 signature | certificate    step: how many steps the sender has decided
    HIGH       head | i32 round | 32 digest | u16 length | certificate | value      in a peer's own vote log alone

    value          u32 step | 32 digest before | u16 round | u16 proposer | u16 K | u16 rows | u8 pairs | rows | pairs
    row            u16 sender | u8 flags | K f32 | 64 signature                                   67 + 4 K
    pair           u16 length | u16 length | message | message
    certificate    u16 round | u16 count | count x (u16 sender | 64 signature)                    4 + 66 q
    justification  u16 count | count x (u16 sender | i32 round | 32 digest | 64 signature) [| certificate]

Every reader here takes bytes from strangers: it returns what the schema allows or raises `Malformed`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeAlias

from gradless.peers.schema import (
    HEAD,
    NO_DIGEST,
    NO_NONCE,
    ROW_FIELDS,
    SIGNATURE,
    STATED,
    U16,
    U32,
    Head,
    Kind,
    Malformed,
    Row,
    Value,
    checked_row,
    digest,
    pack_head,
    parse_head,
    parse_value,
    read_rows,
    split,
)

__all__ = ["Head", "Kind", "Malformed", "Message", "Row", "Value", "digest", "parse", "parse_value"]


class SignedRow(NamedTuple):
    """ROW."""

    head: Head
    row: Row
    chain: bytes  # first 16 bytes of the digest of the step before
    signed: bytes


class Vote(NamedTuple):
    """PREVOTE or PRECOMMIT; also what a PROPOSAL is to those who only want to know whether its leader made two."""

    head: Head
    digest: bytes
    signature: bytes
    witness: bytes  # the leader's signature on its PROPOSAL; empty in a PRECOMMIT
    signed: bytes


class Timeout(NamedTuple):
    """TIMEOUT: no vote of the sender below ``head.round``, and the highest certificate that it holds."""

    head: Head
    high_round: int  # -1 without a certificate
    digest: bytes
    signature: bytes
    certificate: bytes
    value: bytes
    signed: bytes


class Proposal(NamedTuple):
    """PROPOSAL."""

    head: Head
    digest: bytes
    signature: bytes
    value: bytes
    justification: bytes
    signed: bytes


class Decided(NamedTuple):
    """DECIDED."""

    head: Head
    value: bytes
    certificate: bytes


class Hello(NamedTuple):
    """HELLO: ``head.step`` is the first step that the sender lacks; a nonce other than zeros asks for an ANSWER."""

    head: Head
    nonce: bytes


class Rows(NamedTuple):
    """ROWS: rows of others, passed on."""

    head: Head
    rows: tuple[Row, ...]


class Answer(NamedTuple):
    """ANSWER: ``head.step`` steps are decided, the newest with this digest and certificate."""

    head: Head
    nonce: bytes
    digest: bytes
    signature: bytes
    certificate: bytes
    signed: bytes


Message: TypeAlias = SignedRow | Vote | Timeout | Proposal | Decided | Hello | Rows | Answer


def parse(data: bytes, run: bytes, peers: int, width: int) -> Message:
    """Read one message.

    Args:
        data: what came.
        run: 16 bytes.
        peers: number n of peers.
        width: number K of coefficients of a row.

    Raises:
        Malformed: it does not follow the schema to the byte.

    Cost: linear in the message; no signature is checked.
    """
    head = parse_head(data, run, peers)
    return READERS[head.kind](head, data, width)


def _parse_row(head: Head, data: bytes, width: int) -> SignedRow:
    start = HEAD.size + ROW_FIELDS.size
    if len(data) != start + 4 * width + SIGNATURE or head.round:
        raise Malformed("row length")
    flags, count, chain = ROW_FIELDS.unpack_from(data, HEAD.size)
    if count != width:
        raise Malformed("row width")
    row = checked_row(Row(head.sender, flags, data[start:-SIGNATURE], data[-SIGNATURE:]))
    return SignedRow(head, row, chain, data[:-SIGNATURE])


def _parse_vote(head: Head, data: bytes, width: int) -> Vote:
    end = HEAD.size + 32
    witness = SIGNATURE if head.kind is Kind.PREVOTE else 0
    if len(data) != end + SIGNATURE + witness:
        raise Malformed("vote length")
    return Vote(head, data[HEAD.size : end], data[end : end + SIGNATURE], data[end + SIGNATURE :], data[:end])


def _parse_timeout(head: Head, data: bytes, width: int) -> Timeout:
    end = HEAD.size + STATED.size
    if len(data) < end + SIGNATURE:
        raise Malformed("timeout length")
    high_round, high = STATED.unpack_from(data, HEAD.size)
    rest = data[end + SIGNATURE :]
    if not -1 <= high_round < head.round or not head.round:
        raise Malformed("timeout round")
    certificate = value = b""
    if high_round < 0:
        if high != NO_DIGEST or rest:
            raise Malformed("timeout without a certificate")
    else:
        certificate, value = split(rest, U16)
    return Timeout(head, high_round, high, data[end : end + SIGNATURE], certificate, value, data[:end])


def _parse_proposal(head: Head, data: bytes, width: int) -> Proposal:
    end = HEAD.size + 32
    value, justification = split(data[end + SIGNATURE :], U32)
    if bool(justification) != bool(head.round):
        raise Malformed("justification")
    signature = data[end : end + SIGNATURE]
    return Proposal(head, data[HEAD.size : end], signature, value, justification, data[:end])


def _parse_decided(head: Head, data: bytes, width: int) -> Decided:
    value, certificate = split(data[HEAD.size :], U32)
    return Decided(head, value, certificate)


def _parse_hello(head: Head, data: bytes, width: int) -> Hello:
    if len(data) != HEAD.size + len(NO_NONCE):
        raise Malformed("hello length")
    return Hello(head, data[HEAD.size :])


def _parse_rows(head: Head, data: bytes, width: int) -> Rows:
    if len(data) < HEAD.size + U16.size:
        raise Malformed("rows length")
    (count,) = U16.unpack_from(data, HEAD.size)
    rows, end = read_rows(data, HEAD.size + U16.size, count, width)
    if end != len(data):
        raise Malformed("rows length")
    return Rows(head, rows)


def _parse_answer(head: Head, data: bytes, width: int) -> Answer:
    end = HEAD.size + len(NO_NONCE) + 32
    if len(data) < end + SIGNATURE:
        raise Malformed("answer length")
    nonce, its_digest = data[HEAD.size : HEAD.size + 8], data[HEAD.size + 8 : end]
    return Answer(head, nonce, its_digest, data[end : end + SIGNATURE], data[end + SIGNATURE :], data[:end])


READERS: Final[Mapping[Kind, Callable[[Head, bytes, int], Message]]] = {
    Kind.ROW: _parse_row,
    Kind.PREVOTE: _parse_vote,
    Kind.PRECOMMIT: _parse_vote,
    Kind.TIMEOUT: _parse_timeout,
    Kind.PROPOSAL: _parse_proposal,
    Kind.DECIDED: _parse_decided,
    Kind.HELLO: _parse_hello,
    Kind.ROWS: _parse_rows,
    Kind.ANSWER: _parse_answer,
}


def pack_decided(run: bytes, sender: int, step: int, value: bytes, certificate: bytes) -> bytes:
    """Pack DECIDED."""
    return pack_head(run, Kind.DECIDED, sender, step) + U32.pack(len(value)) + value + certificate
