"""A host that dies with everything on it. It takes two minutes of waiting, so it runs beside the other tests."""

from __future__ import annotations

import os
import signal

from flows import rotate
from flows.automations import make_automations
from sandbox.server import Fault
from tests.e2e.conftest import World, apart
from tests.e2e.driver import deploy_to, ended, signal_run, start
from tests.e2e.processes import HELD_SECONDS, check_converged, until_held

pytestmark = apart


async def test_after_a_host_has_died_the_next_run_gets_the_slot_and_the_dead_one_is_marked_crashed(
    world: World,
) -> None:
    """The dead run's lease ends by itself within a minute; the automation marks the run within two."""
    await make_automations({})
    await deploy_to("dead-host")
    worker = world.stack.start_worker("dead-host", pool="dead-host")
    rotation = await world.prepare(world.rotation(destinations=["vault-secret/host"]))
    in_publish = Fault("after", "POST", "/data/", status=0, delay=HELD_SECONDS, times=1)
    world.vault_app.state.faults.add(in_publish)
    run_id = await start(rotation, deployment_name="dead-host")
    await until_held(in_publish)

    os.killpg(worker.pid, signal.SIGKILL)
    signal_run(run_id, signal.SIGKILL)
    healed = await rotate(rotation, return_state=True)
    dead = await ended(run_id, within=180)

    assert healed.is_completed()
    assert dead.state_name == "Crashed"
    assert "no heartbeat for 90 seconds" in str(dead.state.message if dead.state else "")
    assert "Retry is safe" in str(dead.state.message if dead.state else "")
    assert len(world.openrouter.created) == 1
    await check_converged(world, rotation)
