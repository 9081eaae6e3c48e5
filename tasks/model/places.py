"""The places to which destinations point, shortened for the ledger, and their comparison with the present ones.

A block keeps its name when it is edited to point elsewhere, so the name alone does not tell where a key is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType

LONGEST_PLACE = 100
"""The maximum size of one place in the ledger, in bytes."""
ALL_PLACES = 600
"""The maximum size of the places of all destinations in the ledger, in bytes."""
SHORTEST_PLACE = 12
"""If fewer bytes are left for each place, none is stored."""
DIGEST_LENGTH = 8
NO_PLACES: Mapping[str, str] = MappingProxyType({})
CUT = "~"


def shortened(place: str, room: int = LONGEST_PLACE) -> str:
    """Return a place within a number of bytes; a longer one is cut and ends with a digest of the whole.

    Args:
        place: The place, as its destination describes it.
        room: Its maximum size in bytes of JSON.
    """
    if _size(place) <= room:
        return place
    digest = f"{CUT}{sha256(place.encode()).hexdigest()[:DIGEST_LENGTH]}"
    beginning = place[:room]
    while beginning and _size(beginning) > room - len(digest):
        beginning = beginning[:-1]
    return f"{beginning}{digest}"


def is_same(kept: str, place: str) -> bool:
    """Return whether a stored place, possibly shortened, is this one."""
    if kept == place:
        return True
    beginning, _, digest = kept.rpartition(CUT)
    return digest == sha256(place.encode()).hexdigest()[:DIGEST_LENGTH] and place.startswith(beginning)


def kept_places(destinations: Sequence[str], places: Mapping[str, str]) -> tuple[str, ...]:
    """Return the place of each destination as the ledger stores it; empty if the block itself is the place.

    Args:
        destinations: The names of the destinations.
        places: Where each one points now; unknown ones are left out.
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
    """Return the places to which a rotation no longer publishes, because a block was removed or edited.

    Args:
        was: Where each destination pointed when the key was published; empty if unknown.
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
