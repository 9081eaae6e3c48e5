"""The code of the processes that tests kill: a flow run, as in the process that a worker starts for it."""

from __future__ import annotations

import asyncio
import os
from threading import Thread
from uuid import UUID

from prefect.context import refresh_global_settings_context
from prefect.flow_engine import load_flow_and_flow_run, run_flow_async
from prefect.plugins import load_prefect_collections

# Imported before the processes are forked, once for all of them.
from flows.attempts import Attempt
from flows.worker import KeyRotationWorker

# What a run would import later is imported once, before the processes are forked.
load_prefect_collections()


def run(run_id: UUID, env: dict[str, str], log: str, worker_type: str) -> None:
    """Execute an existing flow run, for the first time or again.

    Args:
        run_id: Its id.
        env: The environment in which Prefect finds its server.
        log: The file for its output.
        worker_type: The worker type to imitate: one that starts a process for each run, or a thread.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(env)
    refresh_global_settings_context()
    flow_run, flow = load_flow_and_flow_run(run_id)
    if worker_type == KeyRotationWorker.type:
        attempt = Attempt(flow=flow, flow_run=flow_run, parameters=flow_run.parameters)
        thread = Thread(target=asyncio.run, args=(attempt.make(),))
        thread.start()
        thread.join()
    else:
        asyncio.run(run_flow_async(flow, flow_run=flow_run, parameters=flow_run.parameters, return_type="state"))
