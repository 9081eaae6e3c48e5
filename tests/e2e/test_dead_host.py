"""A host dies with everything on it. The test waits for two minutes, so it runs beside the others."""

from __future__ import annotations

import asyncio
import os
import signal
from uuid import UUID

from flows import rotate
from flows.automations import make_automations
from sandbox.server import Fault
from sandbox.stack import WORKER_TYPE
from tasks.model.rotation import Rotation
from tests.e2e.conftest import Services, with_long_waits
from tests.e2e.driver import deploy_to, ended, signal_run, start
from tests.e2e.processes import HELD_SECONDS, check_converged, until_held

pytestmark = with_long_waits


async def die_while_publishing(services: Services, kind: str) -> tuple[Rotation, UUID]:
    """Kill a worker of a type and its run once it has written to Vault, but before it learns the result."""
    pool = f"dead-host-{kind}"
    await deploy_to(pool, kind)
    worker = services.stack.start_worker(pool, kind=kind, pool=pool)
    rotation = await services.prepare(services.rotation(destinations=[f"vault-secret/{pool}"]))
    in_publish = Fault("after", "POST", "/data/", status=0, delay=HELD_SECONDS, times=1)
    services.vault_app.state.faults.add(in_publish)
    run_id = await start(rotation, deployment_name=pool)
    await until_held(in_publish)
    os.killpg(worker.pid, signal.SIGKILL)
    signal_run(run_id, signal.SIGKILL)
    return rotation, run_id


async def test_after_a_host_has_died_the_next_run_gets_the_slot_and_the_dead_one_is_marked_crashed(
    services: Services,
) -> None:
    """The dead run's lease expires within a minute, and the automation marks the run within two."""
    await make_automations({})
    died = [await die_while_publishing(services, kind) for kind in ("process", WORKER_TYPE)]

    healed = await asyncio.gather(*[rotate(rotation, return_state=True) for rotation, _ in died])
    dead = await asyncio.gather(*[ended(run_id, within=180) for _, run_id in died])

    assert [state.is_completed() for state in healed] == [True, True]
    for run in dead:
        assert run.state_name == "Crashed"
        assert "no heartbeat for 90 seconds" in str(run.state.message if run.state else "")
        assert "Retry is safe" in str(run.state.message if run.state else "")
    assert len(services.openrouter.created) == len(died)
    for rotation, _ in died:
        await check_converged(services, rotation)
