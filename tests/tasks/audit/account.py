"""What the tests of audits put into an account, and how they look at what was found."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sandbox.openrouter_account import StoredKey
from tasks.audit.findings import Finding, Kind, Report
from tasks.model.keys import marker
from tasks.model.ledger import Ledger
from tests.tasks.conftest import Life

FORBIDDEN = '{"error": {"code": 403, "message": "no"}}'


def marked(life: Life, run_id: UUID | None = None, rotation: str = "checkout", **fields: Any) -> StoredKey:
    """A key with a marker that no ledger explains; its run is known here unless it is named."""
    if run_id is None:
        life.runs.add(run_id := uuid4())
    name = f"{marker(rotation, run_id)} left behind"
    return life.openrouter.add_key(life.openrouter.accounts[0], {"name": name, "limit": 5, **fields})


def by_hand(life: Life, **fields: Any) -> StoredKey:
    """A key that somebody made by hand."""
    return life.openrouter.add_key(life.openrouter.accounts[0], {"name": "by hand", "limit": 5, **fields})


def write(life: Life, ledger: Ledger) -> None:
    """Put a ledger in place of the stored one."""
    life.store.value = ledger.to_json()


def found(report: Report) -> set[Kind]:
    """What was found, by kind."""
    return {finding.kind for finding in report.findings}


def only(report: Report, kind: Kind) -> Finding:
    """The one finding of a kind."""
    (finding,) = [finding for finding in report.findings if finding.kind is kind]
    return finding


async def sdk_hashes(life: Life) -> set[str]:
    """The hashes of all keys, as the official SDK lists them."""
    answer = await life.sdk().api_keys.list_async(include_disabled=True)
    return {key.hash for key in answer.data}
