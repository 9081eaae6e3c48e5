"""Names and tags of flow runs: what a run does, and for which rotation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect.client.schemas.objects import FlowRun

from tasks.model.rotation import is_slug
from tasks.world.gate import sent_once
from tasks.world.inventory import is_emergency, rotation_name

MADE_UP = re.compile(r"[a-z]+-[a-z]+|[A-Z][a-z]+-[A-Z][a-z]+")
"""How Prefect names a run that nobody has named: in lower case (`prefect.utilities.names.generate_slug`), and in the
dashboard's form like `Licensed-Quoll`."""


def run_name(flow: str, parameters: Mapping[str, Any]) -> str:
    """Return what a run is called after what it does, such as `rotate checkout` or `emergency checkout`.

    Args:
        flow: The name of its flow.
        parameters: Its parameters, which may be invalid.
    """
    what = "emergency" if is_emergency(parameters) else flow
    # An audit is about an account.
    subject = _rotation(parameters) or _slug(parameters.get("connection"))
    return f"{what} {subject}".strip() + (", plan only" if parameters.get("plan_only") is True else "")


def _rotation(parameters: Mapping[str, Any]) -> str:
    return _slug(rotation_name(parameters, "")) or _slug(parameters.get("rotation_name"))


def _slug(value: object) -> str:
    # Nothing is checked yet, and what was put into the wrong field must not become a name.
    return value if isinstance(value, str) and is_slug(value) else ""


async def name_run(run: FlowRun, flow: str) -> None:
    """Name a run after what it does, and tag it with its rotation, with one request, if one of the two is missing.

    Prefect's `flow_run_name` would always send a request, fail the run with it, and set no tag. What a person has named
    keeps its name.

    Args:
        run: The flow run, which is changed too.
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
