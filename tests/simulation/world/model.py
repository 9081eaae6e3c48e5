"""Everything outside of the process, as plain values that a test or a history can set.

The model's `fate` decides what happens to each effect; after each one, `watch` checks the invariants.
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
from tasks.world.open_ledger import LedgerTerm
from tests.simulation.world.fates import Fate
from tests.simulation.world.keys import ModelKey
from tests.simulation.world.places import Place

if TYPE_CHECKING:
    from tests.simulation.world.lists import ModelList


@dataclass(frozen=True)
class LateEffect:
    """A request that timed out and takes effect later; more than once if `again` is set.

    It can arrive until `ends`; at any later time if that is `None`.
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
        self._hashes: dict[str, str] = {}
        self.connections: dict[str, str] = {"openrouter": "account-1"}
        self.deleted_connections: set[str] = set()
        self.revoked_accounts: set[str] = set()
        self.variables: dict[str, Any] = {}
        self._read: dict[int, tuple[Any, Ledger]] = {}
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
        """How many of the next list changes a concurrent writer undoes."""
        self.story: list[str] = []
        self.fate: Callable[[str], Fate] = lambda _effect: Fate.WORKS
        self.watch: Callable[[str], None] = lambda _effect: None
        self._count = 0

    def record(self, sentence: str) -> None:
        """Add a line to the story."""
        self.story.append(sentence)

    def fresh(self) -> str:
        """Return a value that was never used before."""
        self._count += 1
        return f"{self._count:09d}"

    def alive(self) -> dict[str, ModelKey]:
        """The keys that exist and are not disabled."""
        return {key.hash: key for key in self.keys.values() if not key.disabled}

    def works(self, secret: str | None) -> bool:
        """Whether a consumer can use a secret as a key now."""
        key = self.key_of(secret)
        return key is not None and key.works(self.time)

    def serves(self, secret: str | None) -> bool:
        """Return whether a secret works as a key, or has expired, which only a rotation in time could prevent."""
        key = self.key_of(secret)
        return key is not None and (key.works(self.time) or key.expired(self.time))

    def key_of(self, secret: str | None) -> ModelKey | None:
        """Return the key with this plaintext, if it exists."""
        return self.keys.get(self._hashes.get(secret or "", ""))

    def made(self, key: ModelKey) -> ModelKey:
        """Store a new key."""
        self.keys[key.hash] = key
        self._hashes[key.secret] = key.hash
        return key

    def add_key(self, name: str, request: KeyRequest, account: str) -> ModelKey:
        """Create a key outside of any run."""
        return self.made(
            ModelKey(
                hash=name,
                secret=f"sk-or-v1-{self.fresh()}",
                request=request,
                account=account,
                workspace=f"default-of-{account}",
                created_at=self.time,
                valid_from=self.time,
            )
        )

    def ledger(self, rotation: str) -> Ledger | None:
        """The ledger as it is stored."""
        newest = self.terms(rotation)[:1]
        ledger = self.read(newest[0].value) if newest else None
        return None if ledger is None or ledger.is_closed else ledger

    def read(self, value: Any) -> Ledger:
        """Parse a value of a variable, once: values never change."""
        known = self._read.get(id(value))
        if known is None:
            # Keep the value, so that its id is not reused.
            known = self._read[id(value)] = value, Ledger.model_validate(value)
        return known[1]

    def terms(self, rotation: str) -> list[LedgerTerm]:
        """The terms of a ledger, the newest first."""
        found = ((name.split("_"), value) for name, value in sorted(self.variables.items(), reverse=True))
        return [LedgerTerm(int(number), value) for (_, name, number), value in found if name == rotation]

    def rotations(self) -> list[str]:
        """Return the rotations that have a ledger, even a closed one."""
        return sorted({name.split("_")[1] for name in self.variables})

    def ledgers(self) -> dict[str, Any]:
        """Return the newest term of each rotation."""
        # Newer terms sort after older ones.
        found = {name.split("_")[1]: value for name, value in sorted(self.variables.items())}
        return {name: value for name, value in found.items() if not self.read(value).is_closed}

    def put_ledger(self, rotation: str, value: Any) -> None:
        """Overwrite the newest term, as a person does, or create the first one."""
        terms = self.terms(rotation)
        self.variables[term_variable(rotation, terms[0].number if terms else 1)] = value

    def cancel_retirements(self, rotation: str, but: Collection[datetime]) -> None:
        """Cancel the retirements that are still to come."""
        cancelled = [(name, at) for name, at in self.retirements if name == rotation and at not in but]
        self.retirements.update(dict.fromkeys(cancelled, False))

    def late_effects_happen(self) -> None:
        """Apply the late effects that can still arrive, and keep those that can arrive again."""
        self.late = [effect for effect in self.late if effect.ends is None or self.time <= effect.ends]
        for effect in self.late:
            effect.do()
        self.late = [effect for effect in self.late if effect.again]

    def settle(self) -> None:
        """Apply the late effects that can still arrive, and then discard all of them."""
        self.late_effects_happen()
        self.late.clear()
