"""Add or change a rotation from a form in the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import State
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectNotFound

from blocks import InfisicalSecret, OpenRouterCredentials, VaultSecret
from blocks.errors import ConfigurationError
from flows.deployments import make_first_key, read_deployment, save_deployment
from flows.forms import label
from flows.runs import conclude
from flows.show.artifacts import show_markdown
from flows.show.links import link
from flows.show.overview import refresh_overview
from flows.show.settings import as_settings, change_table
from tasks.model.changes import differences, merged
from tasks.model.former_places import about_to_leave, left_behind
from tasks.model.keys import show_time
from tasks.model.rotation import Rotation, check_switch, parse_rotation
from tasks.model.schedules import Timetable, parse_timetable
from tasks.model.terms import Usd
from tasks.model.tries import TRIES_AGAIN
from tasks.world.api import api_errors
from tasks.world.checks import check_connection, check_destination
from tasks.world.connections import CONNECTION_TYPE
from tasks.world.deployments import schedule_of
from tasks.world.inventory import destinations_in_use
from tasks.world.ledgers import read_ledger
from tasks.world.run import gather_all
from tasks.world.secrecy import secret_flow

FIELDS = {
    "rotation.name": "rotation_name",
    "rotation.description": "description",
    "rotation.connection": "connection",
    "rotation.destinations": "destinations",
    "rotation.overwrite": "overwrite",
    "rotation.overlap": "overlap",
    "rotation.key.name": "key_name",
    "rotation.key.limit_usd": "limit_usd",
    "rotation.key.limit_reset": "limit_reset",
    "rotation.key.include_byok_in_limit": "include_byok_in_limit",
}
"""Which parameter of the form sets which field of a rotation."""


@dataclass(frozen=True)
class Wanted:
    """The rotation that the form describes, its schedule, and whether that is active."""

    rotation: Rotation
    timetable: Timetable
    active: bool


@secret_flow("add-rotation")
async def add_rotation(  # noqa: PLR0913 - the fields of the form, in its order
    connection: Annotated[OpenRouterCredentials, label("Connection")],
    *,
    auto_rotation: Annotated[bool, label("Rotate on a schedule")] = True,
    rotate_at: Annotated[str, label("Rotate at")] = "03:30",
    time_zone: Annotated[str, label("Time zone")] = "UTC",
    interval_days: Annotated[int, label("Interval in days")] = 30,
    key_name: Annotated[str, label("Key name")],
    limit_usd: Annotated[Usd | None, label("Limit (USD)")] = None,
    limit_reset: Annotated[Literal["none", "daily", "weekly", "monthly"], label("Limit reset")] = "none",
    include_byok_in_limit: Annotated[bool, label("Include BYOK in the limit")] = False,
    # The lists are never mutated, and the form needs them; a parametrised `Secret` would be another block type there.
    destinations: Annotated[list[Secret | VaultSecret | InfisicalSecret], label("Destinations")] = [],  # type: ignore[type-arg] # noqa: B006
    other_destinations: Annotated[list[str], label("Other destinations")] = [],  # noqa: B006
    overwrite: Annotated[list[str], label("Overwrite")] = [],  # noqa: B006
    overlap: Annotated[timedelta, label("Overlap")] = timedelta(hours=24),
    rotation_name: Annotated[str, label("Rotation name")],
    description: Annotated[str, label("Description")] = "",
    make_key_now: Annotated[bool, label("Make the first key now")] = True,
) -> State[None]:
    """Add a rotation, or change the existing one of that name.

    The connection and each destination are checked before anything is created.

    Args:
        connection: The OpenRouter connection that creates the keys.
        auto_rotation: Rotate on the schedule below. When off, the rotation only runs manually.
        rotate_at: Local time of the rotation, in 24-hour format, such as 03:30.
        time_zone: IANA time zone of that time, such as Europe/Berlin.
        interval_days: Days between two rotations.
        key_name: The key's name at OpenRouter. A rotation marker and the date are added.
        limit_usd: Spending limit of the key in US dollars. None means no limit.
        limit_reset: How often the spent amount is reset to zero (UTC).
        include_byok_in_limit: Count spending on your own provider keys (BYOK) towards the limit.
        destinations: Secret blocks from which consumers read the key. Create them first, under Blocks.
        other_destinations: Secret blocks of other types, each as block-type-slug/block-name.
        overwrite: Destinations whose content may be replaced although it is no OpenRouter key.
        overlap: How long a superseded key stays valid, such as PT24H or P7D. PT0S revokes it immediately.
        rotation_name: A unique name of lowercase letters, digits and dashes.
        description: What the key is for, and who uses it.
        make_key_now: Create the first key now. A rotation that already has a key is not rotated.

    Returns:
        The final state; its message describes the result.
    """
    asked = {
        "name": rotation_name,
        "description": description,
        "connection": connection,
        "key": {
            "name": key_name,
            "limit_usd": limit_usd,
            "limit_reset": limit_reset,
            "include_byok_in_limit": include_byok_in_limit,
        },
        "overwrite": overwrite,
        "overlap": overlap,
    }
    async with conclude(has_tries=False) as conclusion:
        check_switch("auto_rotation", auto_rotation)
        check_switch("make_key_now", make_key_now)
        timetable = parse_timetable(interval_days, rotate_at, time_zone)
        places = _listed("destinations", destinations) + _listed("other_destinations", other_destinations)
        before, wanted = await _understand({**asked, "destinations": places}, timetable, auto_rotation)
        points_to = await _check(wanted.rotation)
        now = datetime.now(UTC)
        try:
            conclusion.succeeded(await _carry_out(before, wanted, points_to, make_key_now, now))
        finally:
            await refresh_overview(now)
    return conclusion.state


def _listed(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigurationError(f"{field}: must be a list of blocks. Nothing was created.")
    return value


async def _understand(
    asked: dict[str, Any], timetable: Timetable, active: bool
) -> tuple[DeploymentResponse | None, Wanted]:
    """Merge the form into the existing rotation of that name, which may have settings that the form lacks."""
    connection = await block_name(asked["connection"], "connection")
    if not connection.startswith(f"{CONNECTION_TYPE}/"):
        raise ConfigurationError("connection: it is not an OpenRouter connection. Nothing was created.")
    destinations = [await block_name(value, "destinations") for value in asked["destinations"]]
    asked = {**asked, "connection": connection.partition("/")[2], "destinations": destinations}
    # Parse the form alone first: only a valid name may be looked up.
    name = _parse(asked).name
    before = await read_deployment(name)
    kept = before.parameters.get("rotation") if before else None
    return before, Wanted(_parse(merged(kept, asked) if isinstance(kept, dict) else asked), timetable, active)


def _parse(rotation: dict[str, Any]) -> Rotation:
    try:
        return parse_rotation(rotation)
    except ConfigurationError as error:
        field, colon, sentence = str(error).partition(":")
        # The index of a list item follows the field's name.
        name = next(
            (ours for theirs, ours in FIELDS.items() if field == theirs or field.startswith(f"{theirs}.")), field
        )
        raise ConfigurationError(f"{name}{colon}{sentence}") from None


async def block_name(value: Any, field: str) -> str:
    """Return `<block type slug>/<name>` of the block picked in a form, without loading its secrets.

    Args:
        value: A block, Prefect's stored reference to one, or its name.
        field: The field of the form, for error messages.

    Raises:
        ConfigurationError: The block does not exist.
    """
    reference = value.get("$ref") if isinstance(value, dict) else value
    if isinstance(reference, dict) and "block_document_slug" in reference:
        return str(reference["block_document_slug"])
    if isinstance(reference, str) and not isinstance(value, dict):
        return reference
    document_id = reference.get("block_document_id") if isinstance(reference, dict) else reference
    if isinstance(reference, Block):
        document_id = reference._block_document_id  # noqa: SLF001 - Prefect has no public accessor
    try:
        wanted = UUID(str(document_id))
        with api_errors("looking a block up"):
            client, _ = get_or_create_client()
            document = await client.read_block_document(wanted, include_secrets=False)
    except (ObjectNotFound, ValueError):
        raise ConfigurationError(f"{field}: choose a block that is stored under Blocks. Nothing was created.") from None
    slug = document.block_type.slug if document.block_type else ""
    return f"{slug}/{document.name}"


async def _check(rotation: Rotation) -> dict[str, str]:
    """Verify that no destination is used twice, and that the connection and all destinations work (concurrently).

    Returns:
        Where each destination points.
    """
    in_use = await destinations_in_use()
    for name in rotation.destinations:
        # Two rotations would overwrite each other's key.
        if others := in_use.get(name, set()) - {rotation.name}:
            raise ConfigurationError(
                f"destinations: {name} is already a destination of the rotation {min(others)}. Nothing was created."
            )
    _, *checked = await gather_all(
        [
            check_connection(rotation.connection, "connection"),
            *(check_destination(name, "destinations") for name in rotation.destinations),
        ]
    )
    meant: dict[str | None, str] = {}
    for name, outcome in zip(rotation.destinations, checked, strict=True):
        if (other := meant.setdefault(outcome.place, name)) != name:
            raise ConfigurationError(
                f"destinations: {other} and {name} point to the same place, {outcome.place}. Nothing was created."
            )
    return {name: outcome.place or name for name, outcome in zip(rotation.destinations, checked, strict=True)}


async def _carry_out(
    before: DeploymentResponse | None,
    wanted: Wanted,
    points_to: Mapping[str, str],
    make_key_now: bool,
    now: datetime,
) -> str:
    """Create or update the deployment, create the first key, and write the artifact."""
    name = wanted.rotation.name
    ledger = await read_ledger(name)
    starts = make_key_now and ledger.current is None
    last = now if starts else ledger.current.since if ledger.current else None
    first = wanted.timetable.next_rotation(now, last)
    after = await save_deployment(before, wanted.rotation, schedule_of(wanted.timetable, first), wanted.active)
    changes = differences(as_settings(before), as_settings(after)) if before else {}
    run = await make_first_key(after) if starts else None
    left = [*left_behind(ledger), *about_to_leave(ledger, points_to, wanted.rotation.overlap)]
    message = " ".join([_sentence(before, wanted, changes, first, run), *left])
    page = _markdown(after, wanted, changes if before else None, run, message, now)
    await show_markdown(f"add-rotation-{name}", page, f"Result of add-rotation for {name}")
    if run is not None and run.state is not None and run.state.is_final() and not run.state.is_completed():
        advice = "" if run.state.name == TRIES_AGAIN else " Fix the cause, then press Retry here or on that run."
        raise ConfigurationError(
            f"The rotation {name} was saved, but its first key was not made: {run.state.message}{advice}"
        )
    return message


def _sentence(
    before: DeploymentResponse | None,
    wanted: Wanted,
    changes: dict[str, tuple[Any, Any]],
    first: datetime,
    run: FlowRun | None,
) -> str:
    what = f"The rotation {wanted.rotation.name} was " + ("added" if before is None else "changed")
    if before is not None and not changes:
        what = f"The rotation {wanted.rotation.name} is unchanged"
    when = f"next rotation at {show_time(first)}" if wanted.active else "it rotates only when run manually"
    if before is not None and wanted.active and not {"schedule", "auto_rotation"} & set(changes):
        when = f"it rotates {wanted.timetable}, as before"
    if run is None:
        return f"{what}; {when}."
    if run.state is None or run.state.is_scheduled():
        return f"{what}; {when}. Its first key is created as soon as a worker is free."
    if not run.state.is_final():
        return f"{what}; {when}. The run that creates its first key is still running."
    return f"{what}; {when}. Its first key is published."


def _markdown(
    deployment: DeploymentResponse,
    wanted: Wanted,
    changes: dict[str, tuple[Any, Any]] | None,
    run: FlowRun | None,
    message: str,
    now: datetime,
) -> str:
    lines = [f"# Rotation {wanted.rotation.name}", "", message, ""]
    lines += [f"- Deployment: {link('deployment', deployment.id, f'rotate/{deployment.name}')}"]
    if run is not None:
        state = run.state.name if run.state else "unknown"
        lines += [f"- Run that creates the first key: {link('flow-run', run.id, run.name)} ({state})"]
    lines += [f"- Destinations: {', '.join(f'`{name}`' for name in wanted.rotation.destinations)}"]
    skipped = wanted.timetable.skipped(now) if wanted.active else None
    if skipped:
        lines += [
            f"- On {skipped} the clocks skip {wanted.timetable.at:%H:%M}: a rotation on that day runs an hour off."
        ]
    if changes is not None:
        lines += ["", "## Changes", "", *change_table(changes)]
    return "\n".join(lines)
