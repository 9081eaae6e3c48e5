"""How Prefect stores the slots of rotations, as far as a client can see it."""

from __future__ import annotations

from blocks.errors import ServiceError
from blocks.foreign import harmless
from tasks.model.sentences import first_few
from tasks.world.api import OWN_TAG, pages
from tasks.world.gate import sent_once

IN_MEMORY = "prefect.server.concurrency.lease_storage.memory"
"""Prefect's default lease storage, as `GET /admin/settings` names it in Prefect 3.8.8."""
LEASES_IN_MEMORY = (
    "Prefect's server keeps leases in memory, so its restart leaves slots taken, and runs wait until they are "
    "reclaimed: set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem "
    "for the server."
)
LONGEST_NAME = 100


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
