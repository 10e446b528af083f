"""Attacks by name.

A new attack is one function, in `gradless.collab.adversary.identical` if it tells everybody the same and in
`gradless.collab.adversary.equivocating` if not, and one row of `ATTACKS`. What an attack is:
`gradless.collab.adversary.base`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from gradless.collab.adversary.base import (
    Attack,
    AttackContext,
    Bounds,
    State,
    mean_of_honest,
    no_extras,
    to_all,
    to_each,
    unit,
)
from gradless.collab.adversary.equivocating import ALTERNATE, dissensus, spectral, two_faced
from gradless.collab.adversary.identical import alie, anticge, foe, gaussian, inf, ipm, label_flip, nan, none, sign_flip
from gradless.collab.adversary.mimic import mimic
from gradless.collab.option_checks import checked_part, one_of
from gradless.errors import BadInput, pick, unknown

__all__ = ["ATTACKS", "Attack", "AttackContext", "Entry", "State", "mean_of_honest", "named", "no_extras", "to_all"]
__all__ += ["to_each", "unit"]


class Entry(NamedTuple):
    """An attack and what is worth knowing before it is chosen."""

    make: Callable[..., Attack]
    title: str
    """As a page shows it."""
    code: str
    """A few capitals, where a picture has no room for the title."""
    summary: str
    paper: str
    needs: str
    """What the attackers must see or be able to do."""
    cost: str
    """Beside delivering the rows."""

    def options(self) -> dict[str, Any]:
        """Return what it can be told, and the defaults."""
        return {name: p.default for name, p in inspect.signature(self.make).parameters.items()}


def equivocating_alie(
    *, strength: float | str | None = None, bounds: Bounds | None = None, sides: str = ALTERNATE
) -> Attack:
    """`gradless.collab.adversary.identical.alie` for some receivers, mean + z sigma for the others; see `two_faced`."""
    return two_faced(alie(strength=strength, bounds=bounds), sides=sides, name="equivocating-alie")


def equivocating_foe(*, strength: float | None = None, bounds: Bounds | None = None, sides: str = ALTERNATE) -> Attack:
    """`gradless.collab.adversary.identical.foe` for some receivers, (1 + eps) mean for the others; see `two_faced`."""
    return two_faced(foe(strength=strength, bounds=bounds), sides=sides, name="equivocating-foe")


def equivocating_sign_flip(*, sides: str = ALTERNATE) -> Attack:
    """-mean for some receivers, 3 mean for the others; see `two_faced`."""
    return two_faced(sign_flip(), sides=sides, name="equivocating-sign-flip")


def mirrored(*, of: str = "alie", sides: str = ALTERNATE) -> Attack:
    """Any attack, by name, and its mirror image in the honest mean; see `two_faced`."""
    one_of("attack", of, ATTACKS)
    if of == "two-faced":
        raise BadInput("two-faced cannot be two-faced again: give another attack, e.g. of='alie'")
    return two_faced(named(of), sides=sides)


_MNM, _EMPIRES, _SIGNS = "Farhadkhani et al. 2023", "Xie et al. 2020", "Allen-Zhu et al. 2021"
_LITTLE, _GOSSIP, _BUCKETS = "Baruch et al. 2019", "He et al. 2022", "Karimireddy et al. 2022"
_SEES, _EACH = "sees the honest rows", "sees the honest rows; no echo broadcast"
_SEARCH = "one Gram matrix, and the search"

# In the order of tables and pictures.
ATTACKS: dict[str, Entry] = {
    "none": Entry(
        none, "no attack", "", "no attack: declared Byzantine peers send the honest mean", "-", _SEES, "none"
    ),
    "sign-flip": Entry(
        sign_flip, "sign flip", "SF", "minus the honest mean, or scaled until a mean is 0", _SIGNS, _SEES, "none"
    ),
    "label-flip": Entry(
        label_flip, "label flip", "LF", "what a peer with flipped labels sends", _SIGNS, "poisoned data", "a local step"
    ),
    "foe": Entry(foe, "FOE", "FOE", "(1 - eps) mean", _MNM, _SEES, _SEARCH),
    "ipm": Entry(ipm, "IPM", "IPM", "-tau mean", _EMPIRES, _SEES, _SEARCH),
    "alie": Entry(
        alie, "ALIE", "ALIE", "mean - z sigma, inside the honest spread", _LITTLE, _SEES, f"one pass; {_SEARCH}"
    ),
    "mimic": Entry(
        mimic, "mimic", "MIM", "a copy of the peer that is farthest out", _BUCKETS, _SEES, "two passes while it learns"
    ),
    "gaussian": Entry(gaussian, "Gaussian", "GAU", "normal noise", "-", "nothing", "b rows of random numbers"),
    "nan": Entry(nan, "NaN", "NAN", "not a number everywhere", "-", "nothing", "none"),
    "inf": Entry(inf, "infinity", "INF", "infinity everywhere", "-", "nothing", "none"),
    "anticge": Entry(
        anticge, "anti-CGE", "ACGE", "against the shortest rows, just as short", _MNM, _SEES, "one Gram matrix"
    ),
    "dissensus": Entry(dissensus, "dissensus", "DIS", "x_r + s (x_r - mean) to receiver r", _GOSSIP, _EACH, _SEARCH),
    "spectral": Entry(
        spectral,
        "spectral",
        "SPEC",
        "dissensus along the direction in which rows differ most",
        "Gaucher et al. 2025",
        _EACH,
        _SEARCH,
    ),
    "equivocating-sign-flip": Entry(
        equivocating_sign_flip,
        "equivocating sign flip",
        "E-SF",
        "-mean to some, 3 mean to others",
        _SIGNS,
        _EACH,
        "none",
    ),
    "equivocating-foe": Entry(
        equivocating_foe,
        "equivocating FOE",
        "E-FOE",
        "(1 - eps) mean to some, (1 + eps) mean to others",
        _EMPIRES,
        _EACH,
        _SEARCH,
    ),
    "equivocating-alie": Entry(
        equivocating_alie,
        "equivocating ALIE",
        "E-ALIE",
        "mean - z sigma to some, mean + z sigma to others",
        _LITTLE,
        _EACH,
        f"one pass; {_SEARCH}",
    ),
    "two-faced": Entry(
        mirrored, "two-faced", "2F", "any attack to some, its mirror image to others", "-", _EACH, "that of the attack"
    ),
}


def named(name: str, /, **options: Any) -> Attack:
    """Return the attack called ``name`` in `ATTACKS`.

    Raises:
        BadInput: unknown name, option, or a value that an option cannot take.

    Example:
        >>> named("alie", strength=1.5).strength
        1.5
    """
    entry = pick("attack", name, ATTACKS)
    known = entry.options()
    for option in options:
        if option not in known:
            sentence = unknown(f"option of the attack {name}", option, known)
            raise BadInput(sentence if known else f"the attack {name} has no options: leave out {option}")
    attack: Attack = checked_part(name, entry.make, options)
    return attack
