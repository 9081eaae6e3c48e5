"""The keys of an account, sorted by whose they are."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from blocks.openrouter.keys import ApiKey
from tasks.audit.findings import CappedFindings, Counts, Finding, Kind
from tasks.audit.judge import judge_key_not_ours, judge_key_of_nobody
from tasks.audit.ledgers import LedgerSet
from tasks.model.keys import read_marker


class KeyFilter:
    """Takes the keys of an account one at a time, and keeps only those that matter to the audit.

    Args:
        ledgers: All ledgers.
        older_than: How old a key of no rotation may become.
        now: The current moment, UTC.
    """

    def __init__(self, ledgers: LedgerSet, older_than: timedelta, now: datetime) -> None:
        self._hashes = ledgers.hashes()
        self._damaged = ledgers.damaged
        self._older_than = older_than
        self._now = now
        self._of_nobody = CappedFindings(Kind.OF_NOBODY, "keys of no rotation are like those above")
        self._not_ours = CappedFindings(
            Kind.MARKED_NOT_OURS, "keys were made by runs that this Prefect server does not know"
        )
        self.counts = Counts()
        self.explained: dict[str, ApiKey] = {}
        self.undecided: list[ApiKey] = []
        """Keys with a marker that no ledger explains, until `decide` is told which runs this Prefect server knows."""
        self.ours: dict[str, ApiKey] = {}

    def take(self, key: ApiKey) -> None:
        """Look at one key.

        Args:
            key: The key, as a list shows it.
        """
        self.counts.seen += 1
        if key.hash in self._hashes:
            self.counts.of_rotations += 1
            self.explained[key.hash] = key
        elif read_marker(key.name):
            self.counts.unexplained += 1
            self.undecided.append(key)
        else:
            self.counts.of_nobody += 1
            self._of_nobody.add(judge_key_of_nobody(key, self._older_than, self._now))

    def runs(self) -> set[UUID]:
        """Return the runs that made the undecided keys."""
        return {mark[1] for key in self.undecided if (mark := read_marker(key.name))}

    def decide(self, known: Collection[UUID]) -> None:
        """Keep the undecided keys that runs of this Prefect server have made, and tell of the others.

        Args:
            known: The runs that this server knows.
        """
        for key in self.undecided:
            mark = read_marker(key.name)
            if mark and mark[1] in known:
                self.ours[key.hash] = key
            else:
                self._not_ours.add(judge_key_not_ours(key, self._damaged, self._now))
        self.undecided.clear()

    def findings(self) -> list[Finding]:
        """Return what was found about keys of no rotation and of other Prefect servers.

        Returns:
            The findings, some of each kind.
        """
        return [*self._not_ours.findings(), *self._of_nobody.findings()]
