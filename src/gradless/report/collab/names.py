"""Names of algorithms, attacks and splits for people, their order, and short codes."""

from __future__ import annotations

import re
from collections.abc import Sequence

REFERENCE, NO_ATTACK = "d-sgd", "none"
ALPHA, GAMMA = "\u03b1", "\u03b3"
REFERENCE_LABEL = "D-SGD, no attackers"
ALGORITHMS = {
    "monna": "MoNNA",
    "nna": "NNA",
    "mocwtm": "MoCWTM",
    "bridge": "BRIDGE",
    "mogm": "MoGM",
    "gm": "GM",
    "scc": "SCC",
    "clippedgossip": "ClippedGossip",
    "clipped-gossip": "ClippedGossip",
    "learn": "LEARN",
    "d-sgd": "D-SGD",
}
"""Known algorithms in the order of tables and pictures; others follow by name, a variant after what it varies."""
ATTACKS = {
    "none": ("no attack", ""),
    "sign-flip": ("sign flip", "SF"),
    "label-flip": ("label flip", "LF"),
    "foe": ("FOE", "FOE"),
    "ipm": ("IPM", "IPM"),
    "alie": ("ALIE", "ALIE"),
    "mimic": ("mimic", "MIM"),
    "gaussian": ("Gaussian", "GAU"),
    "nan": ("NaN", "NAN"),
    "inf": ("infinity", "INF"),
    "anticge": ("anti-CGE", "ACGE"),
    "dissensus": ("dissensus", "DIS"),
    "spectral": ("spectral", "SPEC"),
    "equivocating-sign-flip": ("equivocating sign flip", "E-SF"),
    "equivocating-foe": ("equivocating FOE", "E-FOE"),
    "equivocating-alie": ("equivocating ALIE", "E-ALIE"),
    "two-faced": ("two-faced", "2F"),
}
SPLITS = {
    "": "",
    "dirichlet": "Dirichlet",
    "dirichlet-classes": "Dirichlet over classes",
    "dirichlet-classes-overlap": "Dirichlet over classes, rows shared",
    "dirichlet-workers": "Dirichlet over workers",
    "gamma": f"{GAMMA}-similarity",
    "gamma-similarity": f"{GAMMA}-similarity",
    "extreme": "extreme",
    "iid": "i.i.d.",
}
ACRONYMS = {
    "alie": "ALIE", "foe": "FOE", "ipm": "IPM", "nan": "NaN", "nna": "NNA", "nnm": "NNM", "arc": "ARC", "zo": "ZO",
    "smea": "SMEA", "caf": "CAF", "cge": "CGE", "mda": "MDA", "bridge": "BRIDGE", "learn": "LEARN", "scc": "SCC",
    "monna": "MoNNA", "mogm": "MoGM", "mocwtm": "MoCWTM", "dirichlet": "Dirichlet", "sgd": "SGD", "iid": "i.i.d.",
}  # fmt: skip


def algorithm_name(name: str) -> str:
    """``monna`` -> ``MoNNA``; of unknown names the known words. What is in parentheses stays as it is."""
    base, _, more = name.partition(" (")
    return (ALGORITHMS.get(base) or _words(base)) + (f" ({more}" if more else "")


def attack_name(name: str) -> str:
    """``sign-flip`` -> ``sign flip``."""
    base, _, more = name.partition(" (")
    return (ATTACKS[base][0] if base in ATTACKS else _words(base)) + (f" ({more}" if more else "")


def split_name(name: str) -> str:
    """``iid`` -> ``i.i.d.``."""
    return SPLITS[name] if name in SPLITS else _words(name)


def algorithm_order(name: str) -> tuple[int, int, str]:
    """Sort key; a variant ("monna-k3") follows what it varies, D-SGD is last."""
    return _order(name, list(ALGORITHMS))


def attack_order(name: str) -> tuple[int, int, str]:
    """Sort key: no attack first."""
    return _order(name, list(ATTACKS))


def attack_codes(attacks: Sequence[str]) -> dict[str, str]:
    """A short, unique code for each attack: "SF", "ALIE"; initials of unknown ones.

    Example:
        >>> attack_codes(["sign-flip", "every-other", "each-one"])
        {'sign-flip': 'SF', 'every-other': 'EO', 'each-one': 'EO2'}
    """
    codes: dict[str, str] = {}
    for name in attacks:
        words = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word]
        initials = "".join(word[0] for word in words) if len(words) > 1 else "".join(words)[:4]
        code = ATTACKS[name][1] if name in ATTACKS else initials.upper() or "?"
        taken, tries = code, 1
        while taken in codes.values():
            tries += 1
            taken = f"{code}{tries}"
        codes[name] = taken
    return codes


def _order(name: str, known: list[str]) -> tuple[int, int, str]:
    if name in known:
        return (known.index(name), 0, name)
    root = max((other for other in known if name.startswith((other + "-", other + " ("))), key=len, default=None)
    last = len(known) - 1 if known[-1] == REFERENCE else len(known)
    return (known.index(root), 1, name) if root is not None else (last, -1, name)


def _words(name: str) -> str:
    return " ".join(ACRONYMS.get(word.lower(), word) for word in re.split(r"[-_ ]+", name) if word) or name
