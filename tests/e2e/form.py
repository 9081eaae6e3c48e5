"""The form that adds or changes a rotation: fill it in, submit it, and read the result."""

from __future__ import annotations

from typing import Any

from prefect import State, get_client
from prefect.artifacts import Artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from flows import add_rotation
from tests.e2e.conftest import Services

HELP = "Help: docs/how-to/troubleshooting.md#a-setting-is-refused"


async def reference(slug: str, name: str) -> dict[str, Any]:
    """Return what the form sends for a picked block."""
    async with get_client() as client:
        document = await client.read_block_document_by_name(name, slug, include_secrets=False)
    return {"$ref": str(document.id)}


async def form(services: Services, **changes: Any) -> dict[str, Any]:
    """Return a filled-in form for a rotation with a unique name and a Prefect secret."""
    rotation = await services.prepare(services.rotation())
    return {
        "connection": await reference("openrouter-credentials", services.connection),
        "rotate_at": "03:30",
        "time_zone": "Europe/Berlin",
        "interval_days": 30,
        "key_name": "checkout service",
        "limit_usd": 50,
        "limit_reset": "monthly",
        "destinations": [await reference("secret", rotation.name)],
        "overlap": "PT24H",
        "rotation_name": rotation.name,
        "description": "The key of the checkout.",
        "make_key_now": False,
        **changes,
    }


async def add(form: dict[str, Any]) -> State[Any]:
    """Submit the form."""
    return await add_rotation(**form, return_state=True)


async def deployed(name: str) -> DeploymentResponse | None:
    """Return the rotation's deployment."""
    async with get_client() as client:
        try:
            return await client.read_deployment_by_name(f"rotate/{name}")
        except ObjectNotFound:
            return None


async def added(form: dict[str, Any]) -> DeploymentResponse:
    """Submit a rotation's form, and return the resulting deployment."""
    await add(form)
    made = await deployed(form["rotation_name"])
    assert made is not None
    return made


async def runs_of(deployment: DeploymentResponse) -> list[FlowRun]:
    """Return the runs of a deployment that no schedule created."""
    of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]))
    async with get_client() as client:
        return [run for run in await client.read_flow_runs(flow_run_filter=of_it) if not run.auto_scheduled]


async def shown(name: str) -> str:
    """Return the artifact of a form's run."""
    artifact = await Artifact.aget(f"add-rotation-{name}")
    return str(artifact.data) if artifact else ""
