"""Chances that a committee drawn from a large group holds more liars than it can stand, and what it would send.

Usage: python benchmarks/committee.py benchmarks/results/committee.json      a second; no gradless, exact whole numbers

A committee of c peers is drawn without replacement from n, some of whom lie; it stands f = floor((c - 1) / 3). One is
drawn every 1,000 steps, so 20,000 steps are 20 draws, and one bad committee is enough. Bytes are those of messages
(`gradless.peers.wire`) in a step that no fault delays, without what TLS and TCP add.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

GROUPS = (100, 1000)
SHARES = (Fraction(1, 20), Fraction(1, 10), Fraction(1, 5), Fraction(1, 4))
COMMITTEES = (31, 64, 100, 150, 200)
DRAWS = 20
COEFFICIENTS = 4
HEAD, SIGNATURE, DIGEST = 26, 64, 32


def too_many(peers: int, liars: int, committee: int) -> Fraction:
    """The chance that a committee holds more than a third of liars (hypergeometric tail)."""
    tolerated = (committee - 1) // 3
    bad = sum(
        comb(liars, k) * comb(peers - liars, committee - k) for k in range(tolerated + 1, min(liars, committee) + 1)
    )
    return Fraction(bad, comb(peers, committee))


def bytes_a_step(peers: int, coefficients: int, rows: int | None = None) -> float:
    """Bytes of payload that a peer of a complete group sends in a step: row, votes, and its turn to propose."""
    value = 45 + (peers if rows is None else rows) * (2 + 1 + 4 * coefficients + SIGNATURE)
    row = HEAD + 3 + 16 + 4 * coefficients + SIGNATURE
    prevote, precommit = HEAD + DIGEST + 2 * SIGNATURE, HEAD + DIGEST + SIGNATURE
    proposal = HEAD + DIGEST + SIGNATURE + 4 + value
    return (peers - 1) * (row + prevote + precommit + proposal / peers)


def decided_bytes(peers: int, coefficients: int, rows: int) -> int:
    """Bytes of a decided value with its certificate, as every peer outside a committee receives them."""
    tolerated = (peers - 1) // 3
    quorum = (peers + tolerated) // 2 + 1
    return 45 + rows * (67 + 4 * coefficients) + 4 + 66 * quorum


def main(path: Path) -> None:
    """Write all chances and sizes."""
    chances: list[dict[str, Any]] = []
    for peers in GROUPS:
        for share in SHARES:
            for committee in (size for size in COMMITTEES if size <= peers):
                chance = too_many(peers, int(peers * share), committee)
                chances.append(
                    {
                        "peers": peers,
                        "liars": int(peers * share),
                        "committee": committee,
                        "tolerated": (committee - 1) // 3,
                        "chance": float(chance),
                        "chance_in_20_draws": float(1 - (1 - chance) ** DRAWS),
                    }
                )
    sizes = [
        {
            "peers": peers,
            "bytes_a_peer_and_step": round(bytes_a_step(peers, COEFFICIENTS)),
            "decided_bytes": decided_bytes(peers, COEFFICIENTS, peers),
        }
        for peers in (4, 7, 10, *COMMITTEES, 1000)
    ]
    figures = {"coefficients": COEFFICIENTS, "draws": DRAWS, "chances": chances, "sizes": sizes}
    path.write_text(json.dumps(figures, indent=1) + "\n")
    for row in chances:
        print(f"{row['liars']} of {row['peers']} lie, committee of {row['committee']}: {row['chance']:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    main(parser.parse_args().path)
