"""Put keys into an account, and read what an audit has found about them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sandbox.openrouter_account import StoredKey
from tasks.audit.findings import Finding, Kind, Report
from tasks.model.keys import marker
from tasks.model.ledger import Ledger
from tests.tasks.conftest import FakeWorld

FORBIDDEN = '{"error": {"code": 403, "message": "no"}}'


def marked(world: FakeWorld, run_id: UUID | None = None, rotation: str = "checkout", **fields: Any) -> StoredKey:
    """Add a key with a marker that is in no ledger; unless given, its run is one that this Prefect server knows."""
    if run_id is None:
        world.runs.add(run_id := uuid4())
    name = f"{marker(rotation, run_id)} left behind"
    return world.openrouter.add_key(world.openrouter.accounts[0], {"name": name, "limit": 5, **fields})


def by_hand(world: FakeWorld, **fields: Any) -> StoredKey:
    """Add a key that a person created by hand."""
    return world.openrouter.add_key(world.openrouter.accounts[0], {"name": "by hand", "limit": 5, **fields})


def write(world: FakeWorld, ledger: Ledger) -> None:
    """Replace the stored ledger."""
    world.store.value = ledger.to_json()


def found(report: Report) -> set[Kind]:
    """Return the kinds of the findings."""
    return {finding.kind for finding in report.findings}


def only(report: Report, kind: Kind) -> Finding:
    """Return the only finding of a kind."""
    (finding,) = [finding for finding in report.findings if finding.kind is kind]
    return finding


async def sdk_hashes(world: FakeWorld) -> set[str]:
    """Return the hashes of all keys, as the official SDK lists them."""
    answer = await world.sdk().api_keys.list_async(include_disabled=True)
    return {key.hash for key in answer.data}
