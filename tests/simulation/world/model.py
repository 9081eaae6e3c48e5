"""Everything outside of the process, as plain values that a test or a history may set.

Each effect asks the model's `fate`, which decides what happens to it.
After each effect `watch` is called, which checks the invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from blocks.openrouter.keys import KeyRequest
from tasks.model.ledger import Ledger
from tasks.model.rotation import Rotation
from tasks.world.ledgers import term_variable
from tasks.world.open_ledger import Term
from tests.simulation.world.fates import Fate
from tests.simulation.world.keys import ModelKey
from tests.simulation.world.places import Place

if TYPE_CHECKING:
    from tests.simulation.world.lists import ModelList


@dataclass(frozen=True)
class LateEffect:
    """A request that was given up, and that takes effect later; a write `again` and again.

    Where the store compares before it sets there is no end to that; elsewhere it cannot arrive after `ends`.
    """

    do: Callable[[], None]
    ends: datetime | None
    again: bool


class Model:
    """Everything outside of the process.

    Args:
        start: The time at which the history begins, UTC.
    """

    def __init__(self, start: datetime = datetime(2026, 12, 1, 2, 30, tzinfo=UTC)) -> None:
        self.time = start
        self.keys: dict[str, ModelKey] = {}
        self.connections: dict[str, str] = {"openrouter": "account-1"}
        self.deleted_connections: set[str] = set()
        self.revoked_accounts: set[str] = set()
        self.variables: dict[str, Any] = {}
        self.signatures = 0
        self.places: dict[str, Place] = {}
        self.runs: set[UUID] = set()
        self.installation = "abcdefg"
        self.retirements: dict[tuple[str, datetime], bool] = {}
        self.deployments: dict[str, Rotation] = {}
        self.interval = timedelta(0)
        self.events: list[dict[str, str]] = []
        self.tells_last_use = True
        self.validity_lag = timedelta(0)
        self.longest_name: int | None = None
        self.late: list[LateEffect] = []
        self.lists: dict[str, ModelList] = {}
        self.late_writers = 0
        """How many changes of lists are undone by somebody who had read the list before."""
        self.story: list[str] = []
        self.fate: Callable[[str], Fate] = lambda _effect: Fate.WORKS
        self.watch: Callable[[str], None] = lambda _effect: None
        self._count = 0

    def tell(self, sentence: str) -> None:
        """Add a line to the story."""
        self.story.append(sentence)

    def fresh(self) -> str:
        """Make something that was never there before."""
        self._count += 1
        return f"{self._count:09d}"

    def alive(self) -> dict[str, ModelKey]:
        """The keys that exist and are not disabled."""
        return {key.hash: key for key in self.keys.values() if not key.disabled}

    def works(self, secret: str | None) -> bool:
        """Whether a consumer can use a secret as a key now."""
        return any(key.secret == secret and key.works(self.time) for key in self.keys.values())

    def serves(self, secret: str | None) -> bool:
        """Whether a secret works as a key, or has come to its own end, which nobody can help who has not rotated."""
        return self.works(secret) or any(k.secret == secret and k.expired(self.time) for k in self.keys.values())

    def add_key(self, name: str, request: KeyRequest, account: str) -> ModelKey:
        """Make a key, as somebody else does."""
        key = ModelKey(
            hash=name,
            secret=f"sk-or-v1-{self.fresh()}",
            request=request,
            account=account,
            workspace=f"default-of-{account}",
            created_at=self.time,
            valid_from=self.time,
        )
        self.keys[key.hash] = key
        return key

    def ledger(self, rotation: str) -> Ledger | None:
        """The ledger as it is stored."""
        value = self.ledgers().get(rotation)
        return None if value is None else Ledger.model_validate(value)

    def terms(self, rotation: str) -> list[Term]:
        """The terms of a ledger, the newest first."""
        found = (name.rsplit("_", 1) for name in self.variables)
        numbers = sorted((int(number) for name, number in found if name.endswith(f"_{rotation}")), reverse=True)
        return [Term(number, self.variables[term_variable(rotation, number)]) for number in numbers]

    def rotations(self) -> list[str]:
        """The rotations that have a ledger, or the last term of one."""
        return sorted({name.split("_")[1] for name in self.variables})

    def ledgers(self) -> dict[str, Any]:
        """The newest term of each rotation."""
        found = {name: self.terms(name)[0].value for name in self.rotations()}
        return {name: value for name, value in found.items() if not Ledger.model_validate(value).is_closed}

    def put_ledger(self, rotation: str, value: Any) -> None:
        """Overwrite the newest term, as a person does, or make the first one."""
        terms = self.terms(rotation)
        self.variables[term_variable(rotation, terms[0].number if terms else 1)] = value

    def cancel_retirements(self, rotation: str, but: Collection[datetime]) -> None:
        """Cancel the retirements that are still to come."""
        cancelled = [(name, at) for name, at in self.retirements if name == rotation and at not in but]
        self.retirements.update(dict.fromkeys(cancelled, False))

    def late_effects_happen(self) -> None:
        """Apply everything that may take effect late; it may do so again, as long as it can arrive at all."""
        self.late = [effect for effect in self.late if effect.ends is None or self.time <= effect.ends]
        for effect in self.late:
            effect.do()
        self.late = [effect for effect in self.late if effect.again]

    def settle(self) -> None:
        """Apply everything that may take effect late for the last time."""
        self.late_effects_happen()
        self.late.clear()
