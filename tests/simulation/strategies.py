"""Strategies for histories: the targets of faults and pauses, and what a person may fill in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

from hypothesis import strategies as st

from tasks.model.rotation import Retirement
from tests.simulation.world.fates import Fate

T = TypeVar("T")

PLACES = {"vault-secret/a": True, "vault-secret/b": True, "secret/c": False, "infisical-secret/d": False}
"""The destinations, and whether they have check-and-set."""
MOVABLE = {name for name in PLACES if not name.startswith("secret/")}
"""The destinations whose blocks can be edited to point to another place."""
NOT_PAUSED_AT = ("write secret", "write infisical")
"""Writes without check-and-set: one paused while an emergency runs publishes a dead key, which nothing prevents."""

AIMED_AT = (
    "create the key",
    "use the key",
    "delete a key",
    "change a key",
    "replace a list",
    "write the ledger",
    "write vault-secret",
    "write secret",
    "write infisical",
    "fence",
    "read vault-secret",
)
"""Effects that faults and pauses target by name, because a number alone hits them too rarely."""
Aim = tuple[str, int]
"""An effect of a run: the beginning of its name, and how many such effects precede it."""
by_name = st.tuples(st.sampled_from(AIMED_AT), st.sampled_from([0, 0, 1, 2, 3]))
by_number = st.tuples(st.just(""), st.integers(0, 25))
aims = st.one_of(by_name, by_number)
KILLED = [Fate.KILLED_BEFORE, Fate.KILLED_AFTER]
crashes = st.tuples(aims, st.sampled_from(KILLED))
faults = st.tuples(aims, st.sampled_from([f for f in Fate if f not in {Fate.WORKS, *KILLED}]))
LATE = (("create the key", 0), ("write vault-secret", 0), ("write secret", 0), ("write infisical", 0))
late = st.tuples(st.sampled_from(LATE) | st.tuples(st.just("write the ledger"), st.integers(0, 6)), st.just(Fate.LATE))
"""Only these effects can arrive late; for any other one, `LATE` is the same as `ANSWER_LOST`."""
fates = st.lists(st.one_of(crashes, faults, late), max_size=3)
runs = st.sampled_from(["rotate", "emergency", "retire", "restore", "apply", "remove", "audit"])
"""The kinds of run that may overtake another one."""
others = runs | st.sampled_from(["retry", "person"])
"""What may happen while a run is paused: another run, a Retry of it, or an edit of a destination by a person."""
destinations = st.lists(st.sampled_from(sorted(PLACES)), min_size=1, max_size=3, unique=True)
retirements = st.builds(
    Retirement,
    retire_when=st.sampled_from(["overlap-ended", "unused"]),
    quiet_time=st.sampled_from([timedelta(minutes=5), timedelta(hours=2)]),
    max_overlap=st.just(timedelta(days=8)),
    on_still_used=st.sampled_from(["revoke", "keep"]),
    revoke=st.sampled_from(["delete", "disable-then-delete"]),
    disabled_for=st.sampled_from([timedelta(hours=1), timedelta(days=3)]),
)
amounts = st.sampled_from([Decimal("0.5"), Decimal("3.333333"), Decimal(20), Decimal(100)])
overlaps = st.sampled_from([timedelta(0), timedelta(minutes=5), timedelta(hours=24), timedelta(days=7)])
minimum_ages = st.sampled_from([timedelta(0), timedelta(hours=12)])
key_settings = st.fixed_dictionaries(
    {
        "limit_reset": st.sampled_from(["none", "daily", "monthly"]),
        "include_byok_in_limit": st.booleans(),
        "guardrail_id": st.sampled_from([None, "guardrail-1", "guardrail-2"]),
        "inherit": st.booleans(),
        "carry_budget": st.booleans(),
        "expires_after": st.sampled_from([None, timedelta(days=40)]),
    }
)
"""What a person may set for every new key."""
nth = st.integers(0, 99)
"""The index of one of several things, modulo their number, which is known only when the rule runs.

A plain number, so that a failing history can be pasted as a test.
"""

BEGINNINGS: dict[str, st.SearchStrategy[Any]] = {
    "names": destinations,
    "overlap": overlaps,
    "retirement": retirements | st.just(Retirement()),
    "key": st.just({}) | key_settings,
    "minimum_age": st.just(timedelta(0)) | minimum_ages,
    "adopts": st.booleans(),
}
"""What a person may have filled in when a history begins."""


def nth_of(things: Sequence[T], which: int) -> T:
    """Return one of several things."""
    return things[which % len(things)]


def hits(aim: Aim, effect: str, seen: Counter[str]) -> bool:
    """Return whether an effect is the target, given those before it."""
    name, before = aim
    return effect.startswith(name) and sum(n for other, n in seen.items() if other.startswith(name)) == before
