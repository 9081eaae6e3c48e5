"""How Prefect stores the slots of rotations, and which runs hold or await them, as far as a client can see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.client.utilities import get_or_create_client

from blocks.errors import ServiceError
from blocks.foreign import harmless
from tasks.model.parameters import is_emergency, rotation_name
from tasks.model.sentences import first_few
from tasks.world.api import OWN_TAG, api_errors, pages
from tasks.world.gate import sent_once

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"
"""Prefect's default lease storage, as `GET /admin/settings` names it in Prefect 3.8.8."""
LEASES_IN_MEMORY = (
    "Prefect's server keeps leases in memory, so its restart leaves slots taken, and runs wait until they are "
    "reclaimed: set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem "
    "for the server."
)
LONGEST_NAME = 100
AT_WORK = ("RUNNING", "PENDING", "CANCELLING")
"""The types of state in which a run may hold its rotation's slot."""
OPENING_A_LEDGER = ["rotate", "retire", "restore-key", "apply-settings", "remove-rotation", "write-off-key", "audit"]
"""The flows whose runs open a ledger; an audit does so for a repair."""
WAITS_FOR = "key-rotation.waits-for"
"""The label of a flow run with its attempt and the concurrency limit for whose slot that attempt waits."""


@dataclass(frozen=True)
class RunAtWork:
    """A run of a rotation that has started and not ended.

    Args:
        id: The flow run's id.
        is_emergency: Whether it is an emergency.
        waits_for: The name of the concurrency limit for whose slot it waits; empty if it waits for none.
    """

    id: str
    is_emergency: bool
    waits_for: str

    @property
    def precedence(self) -> tuple[bool, str]:
        """The sort key of the runs that wait for a slot: emergencies first."""
        return not self.is_emergency, self.id


async def slot_warnings() -> list[str]:
    """Return a sentence for each setting of Prefect that makes runs wait for nobody, or not wait for their turn.

    What cannot be seen causes no warning: Prefect Cloud has no such settings, and a server may refuse to show them.
    """
    return [*await _of_lease_storage(), *await _of_limits()]


async def _of_lease_storage() -> list[str]:
    try:
        async with sent_once("reading the settings of the server") as client:
            settings = (await client.request("GET", "/admin/settings")).json()
            storage = settings["server"]["concurrency"]["lease_storage"]
    except ServiceError:
        return []
    if storage != IN_MEMORY:
        return []
    return [LEASES_IN_MEMORY]


async def _of_limits() -> list[str]:
    off = []
    try:
        async for page in pages("/v2/concurrency_limits/filter", {}, "reading the concurrency limits"):
            named = [str(limit.get("name")) for limit in page if limit.get("active") is False]
            off += [harmless(name, LONGEST_NAME) for name in named if name.startswith(f"{OWN_TAG}_")]
    except ServiceError:
        return []
    if not off:
        return []
    warning = (
        f"Concurrency limits of rotations are switched off: {first_few(off)}. Runs of such a rotation do not wait for "
        "each other, and all but one may fail: switch its limit on."
    )
    return [warning]


async def runs_at_work(rotation: str, *, but: UUID) -> list[RunAtWork]:
    """Return the runs that, according to Prefect, may hold a rotation's slot.

    Raises:
        ServiceError: Prefect's API failed.
    """
    body = {
        "flows": {"name": {"any_": OPENING_A_LEDGER}},
        "flow_runs": {"state": {"type": {"any_": list(AT_WORK)}}, "start_time": {"is_null_": False}},
    }
    return [
        RunAtWork(run["id"], is_emergency(run["parameters"]), _waits_for(run["labels"] or {}, run["run_count"]))
        async for page in pages("/flow_runs/filter", body, "looking for runs at work")
        for run in page
        # An audit names a connection, but may repair any rotation.
        if rotation_name(run["parameters"], "") in (rotation, "") and run["id"] != str(but)
    ]


async def note_waiting(run: FlowRun, limit: str) -> None:
    """Label a run with the slot for which it waits, so that other runs do not take it for the slot's holder.

    Args:
        run: The run; the label applies to its present attempt only.
        limit: The name of the slot's concurrency limit; empty once the run has the slot.

    Raises:
        ServiceError: Prefect's API failed.
    """
    client, _ = get_or_create_client()
    with api_errors("noting that a run waits"):
        await client.update_flow_run_labels(run.id, {WAITS_FOR: f"{run.run_count} {limit}"})


def _waits_for(labels: Mapping[str, Any], attempt: int) -> str:
    noted, _, limit = str(labels.get(WAITS_FOR, "")).partition(" ")
    return limit if noted == str(attempt) else ""
