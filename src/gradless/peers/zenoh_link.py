"""A `Link` over Eclipse Zenoh: a mesh of mutual TLS connections between the peers of a manifest.

Zenoh refuses who has no certificate of the run's CA, and drops what somebody writes under another's name
(`gradless.peers.zenoh_config`). Everything else (signatures, order, loss) is the business of those above.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from gradless.errors import BadInput
from gradless.peers import certificates, zenoh_config
from gradless.peers.inbox import BYTES, Inbox
from gradless.peers.keys import Address, Identity, address
from gradless.peers.link import Answer
from gradless.peers.manifest import Manifest
from gradless.peers.questions import Questions
from gradless.peers.schema import LARGEST
from gradless.system import terminal

if TYPE_CHECKING:
    import zenoh

LIMIT: Final = LARGEST
"""Most bytes of a message of agreed peers."""
CHUNK: Final = 48_000
"""Bytes of records in one part of an answer."""
ANSWER: Final = 8 << 20
"""Most bytes of an answer; who needs more asks again."""
FETCH_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 1.0
LENGTH: Final = struct.Struct("<I")
STATEMENTS: Final = 4
"""Statements that wait of one sender."""
LONGEST_STATEMENT: Final = 1024
RUN_NAME: Final = re.compile("[0-9a-f]{32}")
"""Of a run, in the token of a peer that is there: 16 bytes."""


class ZenohLink:
    """One peer's connections. It is open when the constructor returns; the others come when they start.

    Args:
        manifest: of the run.
        identity: of this peer.
        listen: where to listen, if not at the endpoint in the manifest.
        limit: most bytes of a message; none above 4 MiB is taken before `allow` tells how long they are.

    Raises:
        BadInput: the port is taken, a clock is wrong, or the certificates are not of this run.
    """

    def __init__(
        self, manifest: Manifest, identity: Identity, *, listen: str | None = None, limit: int = LIMIT
    ) -> None:
        self.me, self.names, self.peers = manifest.number(identity), manifest.names, len(manifest.peers)
        self._check(manifest, identity, listen)
        self.sent = self.received = 0
        """Bytes of messages: sent, once for each receiver; and received."""
        self.inbox = Inbox(self.peers, limit=min(limit, BYTES))
        self.strangers: dict[str, str] = {}
        """Peers of the manifest that hold another one: name -> their run."""
        self._run = manifest.run.hex()
        self._alive = {self.me}
        self._said: list[deque[bytes]] = [deque(maxlen=STATEMENTS) for _ in range(self.peers)]
        self._answer: Answer | None = None
        self._asked: Questions[Any] = Questions(self.peers)
        self._closed = False
        self._open(zenoh_config.settings(manifest, identity, listen=listen, limit=limit))
        self._worker = threading.Thread(target=self._answer_queries, name="answers", daemon=True)
        self._worker.start()

    def _check(self, manifest: Manifest, identity: Identity, listen: str | None) -> None:
        member = manifest.peers[self.me]
        certificates.check(
            manifest.contents.ca, member.certificate, member.name, certificates.public_der(identity.tls.public_key())
        )
        own = address(member.endpoint)
        _check_free(address(listen or zenoh_config.own_endpoint(member.endpoint)))
        if not own.loopback and listen is None and _answers(own):
            raise BadInput(
                f"somebody listens at {member.endpoint} already: if {member.name} runs on another machine, end it "
                "there, since two processes with one key convict themselves"
            )

    def _open(self, settings: dict[str, Any]) -> None:
        os.environ.setdefault("ZENOH_RUNTIME", zenoh_config.THREADS)
        import zenoh

        config = zenoh.Config()
        for path, value in settings.items():
            config.insert_json5(path, json.dumps(value))
        where = settings["listen/endpoints"][0]
        try:
            self.session = session = zenoh.open(config)
        except zenoh.ZError as error:
            reason = terminal.sentence(error)[:160]
            raise BadInput(f"cannot listen at {where} ({reason}): free the port, or give another --listen") from None
        name = self.names[self.me]
        self._declared = [
            session.declare_subscriber("zo/*/all", self._take),
            session.declare_subscriber(f"zo/*/to/{name}", self._take),
            session.declare_subscriber("st/*", self._take_statement),
            session.liveliness().declare_subscriber("lv/*/*", self._notice, history=True),
            session.declare_queryable(f"lg/{name}/*/*", self._queue),
            session.liveliness().declare_token(f"lv/{name}/{self._run}"),
        ]
        how: dict[str, Any] = {"congestion_control": zenoh.CongestionControl.BLOCK, "express": True}
        self._to_all = session.declare_publisher(f"zo/{name}/all", **how)
        self._to = {
            peer: session.declare_publisher(f"zo/{name}/to/{other}", **how)
            for peer, other in enumerate(self.names)
            if peer != self.me
        }

    # -- messages -----------------------------------------------------------------------------------------------------

    def send(self, payload: bytes, to: int | None = None) -> None:
        """See `gradless.peers.link.Link`."""
        if self._closed or to == self.me:
            return
        self.sent += len(payload) * (self.peers - 1 if to is None else 1)
        publisher = self._to_all if to is None else self._to[to]
        with self._quietly():
            publisher.put(payload)

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """See `gradless.peers.link.Link`."""
        return self.inbox.get(timeout)

    def allow(self, largest: int) -> None:
        """See `gradless.peers.link.Link`."""
        self.inbox.allow(largest)

    def alive(self) -> frozenset[int]:
        """See `gradless.peers.link.Link`."""
        return frozenset(self._alive)

    def state(self, payload: bytes) -> None:
        """Send a statement (`gradless.peers.statements`) to all others."""
        if not self._closed:
            with self._quietly():
                self.session.put(f"st/{self.names[self.me]}", payload)

    def stated(self) -> list[tuple[int, bytes]]:
        """Return the statements that came since the last call, with their senders."""
        statements = []
        for sender, waiting in enumerate(self._said):
            with contextlib.suppress(IndexError):  # another thread appends
                while True:
                    statements.append((sender, waiting.popleft()))
        return statements

    def _take(self, sample: zenoh.Sample) -> None:
        if (sender := self._sender(str(sample.key_expr))) is not None:
            payload = sample.payload.to_bytes()
            self.received += len(payload)
            self.inbox.put(sender, payload)

    def _take_statement(self, sample: zenoh.Sample) -> None:
        if (sender := self._sender(str(sample.key_expr))) is not None:
            self._said[sender].append(sample.payload.to_bytes()[:LONGEST_STATEMENT])

    def _notice(self, sample: zenoh.Sample) -> None:
        import zenoh

        _, name, run = str(sample.key_expr).split("/")
        if (sender := self._sender(f"lv/{name}")) is None or RUN_NAME.fullmatch(run) is None:
            return
        here = sample.kind == zenoh.SampleKind.PUT
        if run != self._run:
            if here:
                self.strangers[name] = run
            else:
                self.strangers.pop(name, None)
        elif here:
            self._alive.add(sender)
        else:
            self._alive.discard(sender)

    def _sender(self, key: str) -> int | None:
        """Return the number of the peer whose name is the second part of a key; None for one's own."""
        name = key.split("/")[1]
        return self.names.index(name) if name in self.names and name != self.names[self.me] else None

    # -- records ------------------------------------------------------------------------------------------------------

    def serve(self, answer: Answer) -> None:
        """See `gradless.peers.link.Link`. One question of each peer waits (`gradless.peers.questions`)."""
        self._answer = answer

    def fetch(self, peer: int, since: int) -> list[bytes]:
        """See `gradless.peers.link.Link`; at most 8 MiB of records, so ask again until nothing comes."""
        import zenoh

        if self._closed or peer == self.me:
            return []
        records: list[bytes] = []
        key = f"lg/{self.names[peer]}/{self.names[self.me]}/{since}"
        with self._quietly():
            replies: Any = self.session.get(key, consolidation=zenoh.ConsolidationMode.NONE, timeout=FETCH_SECONDS)
            size = 0
            for reply in replies:
                if reply.ok is None:
                    continue
                part = reply.ok.payload.to_bytes()
                size += len(part)
                if size > 2 * ANSWER:  # nobody honest sends that much
                    break
                records += unpacked(part)
        return records

    def _queue(self, query: Any) -> None:
        """Let a question wait for the worker; one that its sender asked before is dropped."""
        asker = str(query.key_expr).split("/")[2]
        if asker not in self.names:
            query.drop()
            return
        if (earlier := self._asked.put(self.names.index(asker), query)) is not None:
            earlier.drop()

    def _answer_queries(self) -> None:
        while (asked := self._asked.get()) is not None:
            asker, query = asked
            begun = time.monotonic()
            with self._quietly(), query:
                self._reply(query)
            self._asked.answered(asker, time.monotonic() - begun)

    def _reply(self, query: zenoh.Query) -> None:
        key = str(query.key_expr)
        since = key.rsplit("/", 1)[1]
        if self._answer is None or not since.isdecimal() or len(since) > 10:
            return
        for part in packed(self._answer(int(since))):
            query.reply(key, part)

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Let what a peer or a closed session can make Zenoh raise end the block: the message is lost."""
        import zenoh

        with contextlib.suppress(zenoh.ZError):
            yield

    def close(self) -> None:
        """See `gradless.peers.link.Link`."""
        if self._closed:
            return
        self._closed = True
        self.inbox.close()
        self._asked.close()
        session: Any = self.session
        with self._quietly():
            session.close()


def packed(records: Any) -> Iterator[bytes]:
    """Yield parts of an answer: each record with its length, up to `CHUNK` bytes or one record a part."""
    part, total = b"", 0
    for record in records:
        if part and len(part) + len(record) > CHUNK:
            yield part
            part = b""
        part += LENGTH.pack(len(record)) + record
        total += len(record)
        if total > ANSWER:
            break
    if part:
        yield part


def unpacked(part: bytes) -> list[bytes]:
    """Return the records in a part of an answer; what is no record ends it."""
    records, at = [], 0
    while at + LENGTH.size <= len(part):
        (length,) = LENGTH.unpack_from(part, at)
        at += LENGTH.size
        if at + length > len(part):
            break
        records.append(part[at : at + length])
        at += length
    return records


def _check_free(where: Address) -> None:
    """Refuse a port at which another process listens.

    Raises:
        BadInput: it is taken, or not ours to take.
    """
    host, port = where
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (
                "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            )
            raise BadInput(
                f"port {port} of {host} cannot be used ({reason}): end that process, or listen elsewhere with --listen"
            ) from None


def _answers(where: Address) -> bool:
    """Return whether somebody takes connections at an address."""
    try:
        with socket.create_connection(where, timeout=ANSWER_SECONDS):
            return True
    except OSError:
        return False
