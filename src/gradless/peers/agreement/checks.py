"""Checks of signatures on behalf of one peer, each once."""

from __future__ import annotations

from typing import Final

from gradless.peers.history import Group
from gradless.peers.schema import Malformed, parse_evidence
from gradless.peers.signing import Ring

REMEMBERED: Final = 512  # signatures of one signer in a step that are not checked twice

COUNTS: Final = ("handled", "malformed", "late", "muted", "checks", "failed", "timeouts")


class Checks:
    """Verifies signatures, and remembers which ones held in this step and the one before.

    Args:
        group: constants of the run.
        ring: public keys.

    Attributes:
        counts: of the whole run, by what was counted: ``COUNTS``.
    """

    def __init__(self, group: Group, ring: Ring) -> None:
        self.group, self.ring = group, ring
        self.counts = dict.fromkeys(COUNTS, 0)
        self._held: dict[int, dict[bytes, bytes]] = {}  # signer -> signature -> what it covers
        self._held_before: dict[int, dict[bytes, bytes]] = {}

    def next_step(self) -> None:
        """Forget the signatures of the step before the last one."""
        self._held_before, self._held = self._held, {}

    def verify(self, sender: int, body: bytes, signature: bytes) -> bool:
        """Return whether ``sender`` signed these bytes.

        Cost: one signature check, none for a signature that held before.
        """
        held = self._held.setdefault(sender, {})
        if held.get(signature) == body or self._held_before.get(sender, {}).get(signature) == body:
            return True
        self.counts["checks"] += 1
        if not self.ring.verify(sender, body, signature):
            self.counts["failed"] += 1
            return False
        if len(held) < REMEMBERED:
            held[signature] = body
        return True

    def require(self, sender: int, body: bytes, signature: bytes) -> None:
        """Check a signature.

        Raises:
            Malformed: ``sender`` did not sign these bytes.
        """
        if not self.verify(sender, body, signature):
            raise Malformed("signature")

    def evidence(self, pair: tuple[bytes, bytes]) -> int:
        """Return the peer that two messages convict: it signed both, for the same step and round.

        Raises:
            Malformed: they convict nobody.
        """
        group = self.group
        (head, body, signature), (other, other_body, other_signature) = (
            parse_evidence(message, group.run, group.peers, group.width) for message in pair
        )
        if head != other or body == other_body:
            raise Malformed("evidence of nothing")
        self.require(head.sender, body, signature)
        self.require(head.sender, other_body, other_signature)
        return head.sender
