"""Sentences about keys that consumers may still read at places to which their rotation no longer publishes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from tasks.model.durations import show_duration
from tasks.model.ledger import Ledger
from tasks.model.records import MadeKey, Superseded
from tasks.model.sentences import first_few
from tasks.model.times import show_time


def left_behind(ledger: Ledger) -> list[str]:
    """Return a sentence for each superseded key that may still be at a former place."""
    return [
        f"{_holder(key)} may still hold the superseded key {key.label}, {_until_when(key)}."
        for key in ledger.superseded
        if key.left_at
    ]


def _until_when(key: Superseded) -> str:
    if key.capped:
        return "which has no budget left, because the current key has the rest: move its consumers now"
    return f"which ends at {show_time(key.revoke_at)}: move its consumers before that"


def left_with_nothing(key: MadeKey) -> str:
    """Return the sentence about a key that ends now and may still be at a former place."""
    return f"{_holder(key)} may still hold the key {key.label}, which has ended: move the consumers that read it there."


def about_to_leave(ledger: Ledger, places: Mapping[str, str], overlap: timedelta) -> list[str]:
    """Return a sentence about the current key, if the next rotation no longer publishes where the key may be read.

    Args:
        ledger: The rotation's ledger.
        places: Where each destination points now.
        overlap: How long the current key stays valid after the next rotation.
    """
    key = ledger.current and ledger.current.leaving(ledger.current.where(), places)
    if key is None or not key.left_at:
        return []
    ends = f"which ends {show_duration(overlap)} after the next rotation" if overlap else "which the next rotation ends"
    return [f"{_holder(key)} may still hold the key {key.label}, {ends}: move its consumers before that."]


def _holder(key: MadeKey) -> str:
    return f"The former place {first_few(key.left_at)}"
