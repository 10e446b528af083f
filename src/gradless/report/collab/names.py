"""How report pages call algorithms, attacks and splits, their order, and short codes: from the tables of `collab`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gradless.collab.algorithms import ALGORITHMS
from gradless.collab.attacks import ATTACKS
from gradless.collab.data.splits import SPLITS

REFERENCE, NO_ATTACK = "d-sgd", "none"
ALPHA, GAMMA = "\u03b1", "\u03b3"
REFERENCE_LABEL = "D-SGD, no attackers"
OLD_NAMES = {"clippedgossip": "clipped-gossip", "gamma": "gamma-similarity"}  # in results of others
OLD_SPLITS = {"": "", "dirichlet": "Dirichlet"}
# How words are written in names that no table has: of rules, variants and the attacks of others.
_SPELLINGS = "ALIE FOE IPM NNA NNM ARC ZO SMEA CAF CGE MDA BRIDGE LEARN SCC SGD NaN MoNNA MoGM MoCWTM Dirichlet"
ACRONYMS = {word.lower(): word for word in _SPELLINGS.split()} | {"iid": "i.i.d."}
MIXING = {
    "alpha": (
        "Contraction (alpha)",
        "alpha: spread of the honest peers after a mixing over that before (mean squared distances to the mean); below "
        "1 peers come together. Marked where the median is 1 or more.",
    ),
    "lambda": (
        "Drift of the mean (lambda)",
        "lambda: squared shift of the honest mean in a mixing over the spread of the honest peers before; 0 means that "
        "the mean stays where it is.",
    ),
}
"""Heading and meaning of what is measured of a mixing."""


def algorithm_name(name: str) -> str:
    """Return the title of an algorithm: ``monna`` -> ``MoNNA``; what is in parentheses stays as it is."""
    base, bracket, more = name.partition(" (")
    base = OLD_NAMES.get(base, base)
    return (ALGORITHMS[base].title if base in ALGORITHMS else _words(base)) + bracket + more


def attack_name(name: str) -> str:
    """Return the title of an attack: ``sign-flip`` -> ``sign flip``; what is in parentheses stays as it is."""
    base, bracket, more = name.partition(" (")
    return (ATTACKS[base].title if base in ATTACKS else _words(base)) + bracket + more


def split_name(name: str) -> str:
    """Return the title of a split: ``iid`` -> ``i.i.d.``."""
    name = OLD_NAMES.get(name, name)
    return SPLITS[name].title if name in SPLITS else OLD_SPLITS.get(name, _words(name))


def algorithm_order(name: str) -> tuple[int, int, str]:
    """Return a sort key; a variant ("monna-k3") follows what it varies, D-SGD is last."""
    return _order(OLD_NAMES.get(name, name), ALGORITHMS)


def attack_order(name: str) -> tuple[int, int, str]:
    """Return a sort key: no attack first."""
    return _order(name, ATTACKS)


def attack_codes(attacks: Sequence[str]) -> dict[str, str]:
    """Return a short, unique code for each attack: "SF", "ALIE"; initials of unknown ones.

    Example:
        >>> attack_codes(["sign-flip", "every-other", "each-one"])
        {'sign-flip': 'SF', 'every-other': 'EO', 'each-one': 'EO2'}
    """
    codes: dict[str, str] = {}
    for name in attacks:
        words = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word]
        initials = "".join(word[0] for word in words) if len(words) > 1 else "".join(words)[:4]
        base = ATTACKS[name].code if name in ATTACKS else initials.upper() or "?"
        code, tries = base, 1
        while code in codes.values():
            tries += 1
            code = f"{base}{tries}"
        codes[name] = code
    return codes


def _order(name: str, table: Iterable[str]) -> tuple[int, int, str]:
    known = list(table)
    if name in known:
        return (known.index(name), 0, name)
    root = max((other for other in known if name.startswith((other + "-", other + " ("))), key=len, default=None)
    last = len(known) - 1 if known[-1] == REFERENCE else len(known)
    return (known.index(root), 1, name) if root is not None else (last, -1, name)


def _words(name: str) -> str:
    return " ".join(ACRONYMS.get(word.lower(), word) for word in re.split(r"[-_ ]+", name) if word) or name
