"""Sort the keys of an account by their owner: a rotation here, another installation, or nobody."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from blocks.openrouter.keys import ApiKey
from tasks.audit.findings import CappedFindings, Counts, Finding, Kind
from tasks.audit.judge import judge_key_of_nobody
from tasks.audit.ledgers import LedgerSet
from tasks.audit.unrecorded import judge_key_not_ours
from tasks.model.keys import read_marker
from tasks.world.installation import remembered_in


class KeyFilter:
    """Classifies the keys of an account one at a time, and keeps only those that matter to the audit.

    Args:
        ledgers: All ledgers.
        installation: The id of this Prefect installation.
        deployed: The rotations that have a deployment.
        older_than: Age from which a key without a rotation is reported.
        now: The current time, UTC.
        named: The hashes in the account's lists.
    """

    def __init__(
        self,
        ledgers: LedgerSet,
        installation: str,
        deployed: Collection[str],
        older_than: timedelta,
        now: datetime,
        named: Collection[str],
    ) -> None:
        self._hashes = ledgers.hashes()
        self._ledgers = ledgers
        self._installation = installation
        self._installations = {installation} | remembered_in(ledgers.values.values())
        self._deployed = deployed
        self._older_than = older_than
        self._now = now
        self._unmanaged = CappedFindings(Kind.UNMANAGED, "keys of no rotation")
        self._not_ours = CappedFindings(Kind.MARKED_NOT_OURS, "keys of other installations")
        self._named = frozenset(named)
        self.counts = Counts()
        self.listed: dict[str, ApiKey] = {}
        """The keys that the account's lists name, by hash."""
        self.workspaces: set[str] = set()
        self.recorded: dict[str, ApiKey] = {}
        self.undecided: list[ApiKey] = []
        """Keys with a marker that are in no ledger, until `decide` sorts them."""
        self.ours: dict[str, ApiKey] = {}

    def take(self, key: ApiKey) -> None:
        """Classify one key."""
        self.counts.seen += 1
        if key.hash in self._named:
            self.listed[key.hash] = key
        if key.workspace_id is not None:
            self.workspaces.add(key.workspace_id)
        if key.hash in self._hashes:
            self.counts.of_rotations += 1
            self.recorded[key.hash] = key
        elif read_marker(key.name):
            self.counts.unrecorded += 1
            self.undecided.append(key)
        else:
            self.counts.unmanaged += 1
            self._unmanaged.add(judge_key_of_nobody(key, self._older_than, self._now))

    def runs(self) -> set[UUID]:
        """Return the runs in those markers of undecided keys that name no installation, as in earlier versions."""
        marks = [read_marker(key.name) for key in self.undecided]
        return {mark.run_id for mark in marks if mark and not mark.installation}

    def decide(self, known: Collection[UUID]) -> None:
        """Keep the undecided keys that this installation made, and report the others.

        Args:
            known: The runs that this Prefect server knows.
        """
        for key in self.undecided:
            mark = read_marker(key.name)
            if mark and mark.is_of(self._installations, known):
                self.ours[key.hash] = key
            elif mark:
                self._not_ours.add(
                    judge_key_not_ours(key, mark, self._installation, self._ledgers, self._deployed, self._now)
                )
        self.undecided.clear()

    def findings(self) -> list[Finding]:
        """Return the findings about keys without a rotation and about keys of other installations."""
        return [*self._not_ours.findings(), *self._unmanaged.findings()]
