"""Rules of backups: Prefect's database is backed up, and restored."""

from __future__ import annotations

from hypothesis.stateful import (
    precondition,
    rule,
)

from tasks.model.ledger import Ledger
from tests.simulation.rules.by_hand import ByHand
from tests.simulation.strategies import (
    nth,
    nth_of,
)
from tests.simulation.world.backup import Backup


class Backups(ByHand):
    """Prefect's database is backed up and restored; OpenRouter and the other stores stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.backups: list[Backup] = []

    @rule()
    def back_up_the_database(self) -> None:
        """Somebody backs up Prefect's database."""
        self.model.record("Prefect's database is backed up")
        self.backups.append(Backup.of(self.model, self.runs, self.completed))

    @precondition(lambda self: self.backups)
    @rule(which=nth)
    def restore_the_database(self, which: int) -> None:
        """Somebody restores Prefect's database while no worker runs."""
        backup = nth_of(self.backups, which)
        self.model.settle()
        backup.restore(self.model)
        self.runs, self.completed = list(backup.runs), set(backup.completed)
        self._begin_to_watch(self.model.ledger("checkout") or Ledger())
        self.model.record(f"Prefect's database is restored, with the ledger at revision {self.last_ledger.revision}")
        recorded = self.last_ledger.hashes()
        # A run searches for later keys only if a destination holds one of them; otherwise, only an audit can find them.
        self.out_of_sight |= set(self.model.keys) - recorded
        self.foreign = {key: settings for key, settings in self.foreign.items() if key not in recorded}
        self._let_go_of_kept_keys()
        for name, content in backup.secrets.items():
            self._put_by_hand(name, content)
        for name in self.model.places:
            self._promise_what_works(name)
