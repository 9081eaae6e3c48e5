"""Every effect of a rotation, in turn, fails, loses its answer, or is the last thing that the process does."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from tasks.model.decisions import Identity
from tasks.model.rotation import Rotation
from tests.simulation.invariants import check_agreement, check_no_orphan, check_serving
from tests.simulation.runs import Ended, play, run_protocol
from tests.simulation.world.fates import Fate
from tests.simulation.world.model import Model
from tests.simulation.world.places import Place
from tests.simulation.world.process import Process

FATES = [fate for fate in Fate if fate is not Fate.WORKS]


class Story:
    """A rotation in a model world, watched after every effect."""

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation
        self.model = Model()
        self.model.places = {
            "vault-secret/checkout": Place(),
            "secret/checkout": Place(checks_and_sets=False, versions=["not-yet-rotated"]),
        }
        self.made: set[str] = set()
        self.serving: set[str] = set()
        self.effects = 0
        self.model.watch = self._watch

    def _watch(self, effect: str) -> None:
        self.made |= {key.secret for key in self.model.keys.values()}
        self.serving |= {name for name, place in self.model.places.items() if place.content in self.made}
        check_serving(self.model, self.rotation, self.serving, effect)

    def put_by_hand(self, name: str, content: str | None) -> None:
        """Let a person write into a destination, for which nothing is promised until a run has written to it again."""
        self.serving.discard(name)
        self.model.places[name].versions.append(content)

    def rotate(self, run_id: UUID | None = None, *, attempt: int = 1, emergency: bool = False) -> Ended:
        """Run the protocol once."""
        self.model.time += timedelta(hours=1)
        run_id = run_id or uuid4()
        identity = Identity(run_id, self.model.time, attempt, emergency)
        return play(run_protocol(self.model, self.rotation, identity, Process(self.model)))

    def strike(self, at: int, fate: Fate) -> None:
        """Let the effect of that number, counted from now, meet its fate."""
        counter = iter(range(10**6))
        self.model.fate = lambda _effect: fate if next(counter) == at else Fate.WORKS

    def calm(self) -> None:
        """Let everything work again."""
        self.model.fate = lambda _effect: Fate.WORKS
        self.model.late_effects_happen()


def count_effects(rotation: Rotation, *, first: bool) -> int:
    """Count the effects of a rotation in which all goes well."""
    story = Story(rotation)
    if not first:
        assert story.rotate().succeeded
    seen: list[str] = []

    def works(effect: str) -> Fate:
        seen.append(effect)
        return Fate.WORKS

    story.model.fate = works
    assert story.rotate().succeeded
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
        story = Story(rotation)
        if not first:
            assert story.rotate().succeeded
        run_id = uuid4()

        story.strike(at, fate)
        ended = story.rotate(run_id)
        story.calm()
        healed = story.rotate(run_id, attempt=2) if again == "retry" else story.rotate()

        assert healed.succeeded, (at, ended, healed, story.model.story)
        check_no_orphan(story.model, rotation)
        check_agreement(story.model, rotation)


@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name.lower())
def test_a_retry_never_makes_a_second_key_once_one_is_published(rotation: Rotation, fate: Fate) -> None:
    """A Retry after any struck publish finishes the same rotation with the key that a destination already holds."""
    for at in range(count_effects(rotation, first=True)):
        story = Story(rotation)
        run_id = uuid4()
        story.strike(at, fate)
        story.rotate(run_id)
        half_published = {place.content for place in story.model.places.values()} & story.made

        story.calm()
        assert story.rotate(run_id, attempt=2).succeeded

        if half_published:
            assert {place.content for place in story.model.places.values()} == half_published
