"""A rotation in the model world, for tests that plan each fault themselves; `machine` generates them."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

from tasks.model.decisions import Identity
from tasks.model.rotation import Rotation
from tests.simulation.invariants import check_serving
from tests.simulation.runs import Ended, play, run_protocol
from tests.simulation.world.fates import Fate
from tests.simulation.world.model import Model
from tests.simulation.world.places import Place
from tests.simulation.world.process import Process


class WatchedRotation:
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
        """Write to a destination as a person; I1 is not checked there until it holds a key of the rotation again."""
        self.serving.discard(name)
        self.model.places[name].versions.append(content)

    def rotate(self, run_id: UUID | None = None, *, attempt: int = 1, emergency: bool = False) -> Ended:
        """Run the protocol once, an hour later."""
        self.model.time += timedelta(hours=1)
        run_id = run_id or uuid4()
        identity = Identity(run_id, self.model.time, attempt, emergency)
        return play(run_protocol(self.model, self.rotation, identity, Process(self.model)))

    def strike(self, at: int, fate: Fate) -> None:
        """Plan the fate of one effect by its index, counted from now."""
        counter = iter(range(10**6))
        self.model.fate = lambda _effect: fate if next(counter) == at else Fate.WORKS

    def calm(self) -> None:
        """Stop all faults, and apply the late effects."""
        self.model.fate = lambda _effect: Fate.WORKS
        self.model.late_effects_happen()
