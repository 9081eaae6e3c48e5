"""Back up and restore the part of Prefect's database that belongs to a rotation; other stores are unaffected."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from tasks.model.decisions import Identity
from tests.simulation.world.model import Model


@dataclass(frozen=True)
class Backup:
    """One backup.

    Args:
        variables: The ledgers.
        flow_runs: The flow runs that Prefect knows.
        retirements: The scheduled retirements.
        secrets: What each of Prefect's own secret blocks holds.
        runs: The runs that can be retried.
        completed: Those of them that have completed.
    """

    variables: dict[str, Any]
    flow_runs: set[UUID]
    retirements: dict[tuple[str, datetime], bool]
    secrets: dict[str, str | None]
    runs: list[Identity]
    completed: set[UUID]

    @classmethod
    def of(cls, model: Model, runs: list[Identity], completed: set[UUID]) -> Self:
        """Back up the database."""
        secrets = {name: place.content for name, place in model.places.items() if name.startswith("secret/")}
        variables = deepcopy(model.variables)
        return cls(variables, set(model.runs), dict(model.retirements), secrets, list(runs), set(completed))

    def restore(self, model: Model) -> None:
        """Restore the ledgers, flow runs and retirements; the caller restores the rest."""
        model.variables = deepcopy(self.variables)
        model.runs, model.retirements = set(self.flow_runs), dict(self.retirements)
