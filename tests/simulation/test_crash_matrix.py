"""Strike each effect of a rotation in turn: a failure, a refusal, a lost or late answer, or a kill."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from tasks.model.rotation import Rotation
from tests.simulation.invariants import check_agreement, check_no_orphan
from tests.simulation.watched_rotation import WatchedRotation
from tests.simulation.world.fates import Fate

pytestmark = pytest.mark.slow

FATES = [fate for fate in Fate if fate is not Fate.WORKS]


def count_effects(rotation: Rotation, *, first: bool) -> int:
    """Count the effects of a rotation without faults."""
    watched = WatchedRotation(rotation)
    if not first:
        assert watched.rotate().succeeded
    seen: list[str] = []

    def works(effect: str) -> Fate:
        seen.append(effect)
        return Fate.WORKS

    watched.model.fate = works
    assert watched.rotate().succeeded
    return len(seen)


@pytest.mark.parametrize("again", ["retry", "new run"])
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("first", [True, False], ids=["first rotation", "later rotation"])
@pytest.mark.parametrize("overlap", [timedelta(0), timedelta(hours=24)], ids=["at once", "overlap"])
def test_one_struck_effect_is_healed_by_the_next_run(
    rotation: Rotation, overlap: timedelta, first: bool, fate: Fate, again: str
) -> None:
    """Whatever happens to any one effect, no destination is ever without a key, and the next run leaves no orphan."""
    rotation = rotation.model_copy(update={"overlap": overlap})
    for at in range(count_effects(rotation, first=first)):
        watched = WatchedRotation(rotation)
        if not first:
            assert watched.rotate().succeeded
        run_id = uuid4()

        watched.strike(at, fate)
        ended = watched.rotate(run_id)
        watched.calm()
        healed = watched.rotate(run_id, attempt=2) if again == "retry" else watched.rotate()

        assert healed.succeeded, (at, ended, healed, watched.model.story)
        check_no_orphan(watched.model, rotation)
        check_agreement(watched.model, rotation)


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
def test_a_retry_never_makes_a_second_key_once_one_is_published(rotation: Rotation, fate: Fate) -> None:
    """A Retry after any fault finishes the rotation with the key that a destination already holds, if one does."""
    for at in range(count_effects(rotation, first=True)):
        watched = WatchedRotation(rotation)
        run_id = uuid4()
        watched.strike(at, fate)
        watched.rotate(run_id)
        half_published = {place.content for place in watched.model.places.values()} & watched.made

        watched.calm()
        assert watched.rotate(run_id, attempt=2).succeeded

        if half_published:
            assert {place.content for place in watched.model.places.values()} == half_published
