"""The places that a rotation's destinations point to: kept short in the ledger, and compared with where they point now.

A block keeps its name when it is edited to point elsewhere, so its name alone does not tell where a key was published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType

LONGEST_PLACE = 100
"""How many bytes of the ledger one place may take."""
ALL_PLACES = 600
"""How many bytes of the ledger the places of all destinations may take together."""
SHORTEST_PLACE = 12
"""With fewer bytes for each, no place is kept."""
DIGEST_LENGTH = 8
NOWHERE: Mapping[str, str] = MappingProxyType({})
CUT = "~"


def shortened(place: str, room: int = LONGEST_PLACE) -> str:
    """Return a place in a bounded number of bytes; one that is too long ends with a digest of the whole.

    Args:
        place: The place, as a destination names it.
        room: How many bytes of JSON it may take.
    """
    if _size(place) <= room:
        return place
    digest = f"{CUT}{sha256(place.encode()).hexdigest()[:DIGEST_LENGTH]}"
    beginning = place[:room]
    while beginning and _size(beginning) > room - len(digest):
        beginning = beginning[:-1]
    return f"{beginning}{digest}"


def is_same(kept: str, place: str) -> bool:
    """Return whether a place that was kept, perhaps shortened, is this one."""
    if kept == place:
        return True
    beginning, _, digest = kept.rpartition(CUT)
    return digest == sha256(place.encode()).hexdigest()[:DIGEST_LENGTH] and place.startswith(beginning)


def kept_places(destinations: Sequence[str], places: Mapping[str, str]) -> tuple[str, ...]:
    """Return, for each destination, its place as the ledger keeps it; empty where the block itself is the place.

    Args:
        destinations: The names of the destinations.
        places: Where each one points now; those that are not known are left out.
    """
    room = min(LONGEST_PLACE, ALL_PLACES // max(len(destinations), 1))
    if room < SHORTEST_PLACE:
        return ()
    known = [places.get(name, name) for name in destinations]
    kept = tuple(
        "" if place == name else shortened(place, room) for name, place in zip(destinations, known, strict=True)
    )
    return kept if any(kept) else ()


def left_places(was: Mapping[str, str], places: Mapping[str, str]) -> tuple[str, ...]:
    """Return the places to which a rotation no longer publishes: those of removed blocks, and of edited ones.

    Args:
        was: Where each destination pointed when the key was published; empty where that is not known.
        places: Where each one points now.
    """
    now = [*places, *places.values()]
    left = []
    for name, place in was.items():
        if place and not any(is_same(place, other) for other in now):
            left.append(place)
        elif not place and name not in places:
            left.append(name)
    return tuple(left)


def _size(text: str) -> int:
    return len(json.dumps(text)) - 2
