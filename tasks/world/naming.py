"""Names and tags of flow runs: what a run does, for which rotation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect.client.schemas.objects import FlowRun

from tasks.model.parameters import is_emergency, rotation_name
from tasks.model.rotation import is_slug
from tasks.world.gate import sent_once

EMERGENCY = "emergency"
"""What an emergency does, in the name of its run."""
MADE_UP = re.compile(r"[a-z]+-[a-z]+|[A-Z][a-z]+-[A-Z][a-z]+")
"""The names that Prefect generates for unnamed runs: in lower case (`prefect.utilities.names.generate_slug`), or in the
dashboard like `Licensed-Quoll`."""


def run_name(flow: str, parameters: Mapping[str, Any]) -> str:
    """Return the name of a run, such as `rotate checkout` or `emergency checkout`.

    Args:
        flow: The name of its flow.
        parameters: Its parameters, which may be invalid.
    """
    what = EMERGENCY if is_emergency(parameters) else flow
    # An audit concerns an account.
    subject = _rotation(parameters) or _slug(parameters.get("connection"))
    return f"{what} {subject}".strip() + (", plan only" if parameters.get("plan_only") is True else "")


def _rotation(parameters: Mapping[str, Any]) -> str:
    return _slug(rotation_name(parameters, "")) or _slug(parameters.get("rotation_name"))


def _slug(value: object) -> str:
    # The parameters are not validated yet; a value in the wrong field must not become a name.
    return value if isinstance(value, str) and is_slug(value) else ""


async def name_run(run: FlowRun, flow: str) -> None:
    """Name a run after what it does, and tag it with its rotation, in one request and only if either is missing.

    Prefect's `flow_run_name` would always send a request, fail the run if that fails, and set no tag. A name given by a
    person is kept.

    Args:
        run: The flow run, which is updated too.
        flow: The name of its flow.

    Raises:
        ServiceError: Prefect's API failed.
    """
    rotation = _rotation(run.parameters)
    name = run_name(flow, run.parameters) if MADE_UP.fullmatch(run.name) else run.name
    tags = [*run.tags, rotation] if rotation and rotation not in run.tags else run.tags
    if (name, tags) == (run.name, run.tags):
        return
    async with sent_once("naming the run") as client:
        await client.update_flow_run(run.id, name=name, tags=tags)
    run.name, run.tags = name, tags
