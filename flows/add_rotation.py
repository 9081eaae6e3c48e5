"""Add or change a rotation from a form in the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from prefect import State
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import DeploymentSchedule, FlowRun
from prefect.client.schemas.responses import DeploymentResponse

from blocks import InfisicalSecret, OpenRouterCredentials, VaultSecret
from blocks.errors import ConfigurationError, KeyRotationError
from flows.deployments import longest_interval_after, make_first_key, read_deployment, save_deployment
from flows.forms import UNCHANGED, Refusals, block_name, form_field, given
from flows.runs import conclude
from flows.show.artifacts import show_markdown
from flows.show.links import link
from flows.show.overview import refresh_overview
from flows.show.settings import as_settings, change_table, settings_of
from tasks.model.changes import differences, merged
from tasks.model.durations import PATTERN as DURATION_PATTERN
from tasks.model.former_places import about_to_leave, left_behind
from tasks.model.rotation import (
    DESTINATION_SCHEMA,
    MAX_ROTATION_NAME,
    NAME_PATTERN,
    Rotation,
    check_switch,
    is_slug,
    parse_rotation,
)
from tasks.model.schedules import MAX_INTERVAL_DAYS, TIME_PATTERN, Timetable, parse_spread, parse_timetable
from tasks.model.terms import Usd
from tasks.model.times import show_time
from tasks.model.tries import TRIES_AGAIN
from tasks.world.checks import BlockCheck, check_connection, check_destination, places_of
from tasks.world.connections import connection_of
from tasks.world.deployments import accepts_zone, own_schedule, read_timetable, rotates_by_itself, schedule_of
from tasks.world.inventory import destinations_in_use
from tasks.world.ledgers import read_ledger
from tasks.world.management_keys import remember_use
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
"""The form parameter that sets each field of a rotation."""
NO_LIMIT = "no limit"
NEW_TIMETABLE = Timetable(30, time(3, 30), ZoneInfo("UTC"))
"""The defaults of a new rotation's timetable."""
CORRECT_IT = "To correct the form, choose Copy to new run in this run's menu: it keeps what was typed."


@dataclass(frozen=True)
class Wanted:
    """The rotation that the form describes.

    Args:
        rotation: Its settings.
        timetable: When it rotates; `None` leaves the schedule of an existing rotation as it is.
        active: Whether its schedule is active.
    """

    rotation: Rotation
    timetable: Timetable | None
    active: bool


@secret_flow("add-rotation")
async def add_rotation(  # noqa: PLR0913 - the fields of the form, in its order
    connection: Annotated[OpenRouterCredentials | None, form_field("Connection")] = None,
    *,
    auto_rotation: Annotated[Literal["unchanged", True, False], form_field("Rotate on a schedule")] = UNCHANGED,
    rotate_at: Annotated[str, form_field("Rotate at", pattern=f"^({TIME_PATTERN})?$")] = "",
    time_zone: Annotated[str, form_field("Time zone")] = "",
    spread: Annotated[str, form_field("Spread", pattern=f"{DURATION_PATTERN}|^$")] = "",
    interval_days: Annotated[int | None, form_field("Interval in days", minimum=1, maximum=MAX_INTERVAL_DAYS)] = None,
    key_name: Annotated[str, form_field("Key name", pattern="^[^\\r\\n]*$")] = "",
    limit_usd: Annotated[Usd | Literal["no limit"] | None, form_field("Limit (USD)")] = None,
    limit_reset: Annotated[
        Literal["unchanged", "none", "daily", "weekly", "monthly"], form_field("Limit reset")
    ] = UNCHANGED,
    include_byok_in_limit: Annotated[
        Literal["unchanged", True, False], form_field("Include BYOK in the limit")
    ] = UNCHANGED,
    # Prefect's form needs list defaults; they are never mutated. A parametrised `Secret` would be another block type.
    destinations: Annotated[list[Secret | VaultSecret | InfisicalSecret], form_field("Destinations")] = [],  # type: ignore[type-arg] # noqa: B006
    other_destinations: Annotated[list[str], form_field("Other destinations", items=DESTINATION_SCHEMA)] = [],  # noqa: B006
    overwrite: Annotated[list[str], form_field("Overwrite", items=DESTINATION_SCHEMA)] = [],  # noqa: B006
    overlap: Annotated[str, form_field("Overlap", pattern=f"{DURATION_PATTERN}|^$")] = "",
    rotation_name: Annotated[str, form_field("Rotation name", pattern=NAME_PATTERN, maxLength=MAX_ROTATION_NAME)],
    description: Annotated[str, form_field("Description")] = "",
    make_key_now: Annotated[bool, form_field("Make the first key now")] = True,
    review_only: Annotated[bool, form_field("Review only")] = False,
) -> State[None]:
    """Add a rotation, or change the existing one of that name: a field left empty keeps its value.

    A new rotation needs a name, a connection, a key name and at least one destination. Everything is checked, and
    everything that is wrong is named, before anything is created.

    Args:
        connection: The OpenRouter connection that creates the keys. Required for a new rotation.
        auto_rotation: Rotate on the schedule below; false means manually only. Unchanged means true for a new rotation.
        rotate_at: Local time of the rotation, in 24-hour format, such as 03:30. Empty means 03:30 for a new rotation.
        time_zone: IANA time zone of that time, such as Europe/Berlin. Empty means UTC for a new rotation.
        spread: Window after that time, such as 2h, in which the rotation gets its own minute. Empty means 0h when new.
        interval_days: Days between two rotations. None means 30 for a new rotation.
        key_name: The key's name at OpenRouter, between a rotation marker and the date. Required for a new rotation.
        limit_usd: Spending limit of the key in US dollars, or "no limit". None means no limit for a new rotation.
        limit_reset: How often the spent amount is reset to zero (UTC). Unchanged means none for a new rotation.
        include_byok_in_limit: Count spending on your own provider keys (BYOK). Unchanged means false when new.
        destinations: Secret blocks from which consumers read the key; a new rotation needs at least one, here or below.
        other_destinations: Secret blocks of other types, each as block-type-slug/block-name.
        overwrite: Destinations (block-type-slug/block-name) whose content may be lost although it is no OpenRouter key.
        overlap: How long a superseded key stays valid, such as 24h or 7d; 0h for none. Empty means 24h when new.
        rotation_name: The rotation to add or change: lowercase letters, digits and single dashes.
        description: What the key is for, and who uses it.
        make_key_now: Create the first key now. A rotation that already has a key is not rotated.
        review_only: Check everything and show each field before and after, without changing anything.

    Returns:
        The final state; its message describes the result.
    """
    form = {
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
    async with conclude() as conclusion:
        now = datetime.now(UTC)
        try:
            before, wanted = await _understand(
                form,
                {"destinations": destinations, "other_destinations": other_destinations},
                {"days": interval_days, "at": rotate_at, "zone": time_zone, "spread": spread},
                {"auto_rotation": auto_rotation, "make_key_now": make_key_now, "review_only": review_only},
            )
            await _check_expiry(before, wanted, now)
            connection_seen, points_to = await _check(wanted.rotation)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error} {CORRECT_IT}") from None
        if review_only:
            conclusion.succeeded(await _review(before, wanted))
            return conclusion.state
        try:
            if connection_seen.in_use:
                await remember_use(connection_seen.in_use)
            conclusion.succeeded(await _carry_out(before, wanted, points_to, make_key_now, now))
        finally:
            await refresh_overview(now)
    return conclusion.state


async def _understand(
    form: dict[str, Any], picked: dict[str, Any], times: dict[str, Any], switches: dict[str, Any]
) -> tuple[DeploymentResponse | None, Wanted]:
    """Merge the form into the existing rotation of that name, and report all invalid fields at once."""
    wrong = Refusals()
    for field, value in given(switches).items():
        with wrong.collected():
            check_switch(field, value)
    asked = given(form)
    if asked.get("key", {}).get("limit_usd") == NO_LIMIT:
        asked["key"] |= {"limit_usd": None, "limit_reset": asked["key"].get("limit_reset", "none")}
    with wrong.collected():
        asked |= await _connection(asked)
    named = []
    for field, value in picked.items():
        for each in _listed(field, value, wrong):
            with wrong.collected():
                named += [await block_name(each, "destinations")]
    if named:
        # The form's `overwrite` refers to the destinations in the form, not to the former ones.
        asked |= {"destinations": named, "overwrite": form["overwrite"]}
    name = form["name"]
    before = await read_deployment(name) if isinstance(name, str) and is_slug(name) else None
    kept = before.parameters.get("rotation") if before else None
    own = own_schedule(before) if before else None
    active = given(switches).get("auto_rotation", before is None or rotates_by_itself(before))
    timetable, window, asked_times = None, None, given(times)
    with wrong.collected():
        window = parse_spread(asked_times.pop("spread")) if "spread" in asked_times else None
    with wrong.collected():
        makes_one = before is None or (own is None and active is True)
        timetable = _timetable(own, asked_times, str(name), window, makes_one=makes_one)
    with wrong.collected():
        rotation = _parse(merged(kept, asked) if isinstance(kept, Mapping) else asked)
    wrong.raise_all()
    return before, Wanted(rotation, timetable, active)


def _timetable(
    own: DeploymentSchedule | None, asked: dict[str, Any], name: str, window: timedelta | None, *, makes_one: bool
) -> Timetable | None:
    """Return the timetable that the form describes; `None` to leave the schedule as it is."""
    present = read_timetable(own.schedule) if own else NEW_TIMETABLE
    if not asked and window is None and (present is None or (own is None and not makes_one)):
        return None
    if present is None and len(asked) < len(NEW_TIMETABLE.fields()):
        raise ConfigurationError(
            "rotate_at, time_zone, interval_days: fill in all three, because the existing schedule is of another kind "
            "than every N days at a local time. Nothing was created."
        )
    timetable = parse_timetable(**{**(present.fields() if present else {}), **asked}, accepts=accepts_zone)
    if window is None:
        return replace(timetable, later=present.later) if present else timetable
    return timetable.spread(name, window)


async def _connection(asked: dict[str, Any]) -> dict[str, str]:
    if "connection" not in asked:
        return {}
    connection = connection_of(await block_name(asked.pop("connection"), "connection"))
    if connection is None:
        raise ConfigurationError("connection: it is not an OpenRouter connection. Nothing was created.")
    return {"connection": connection}


def _listed(field: str, value: Any, wrong: Refusals) -> list[Any]:
    with wrong.collected():
        if not isinstance(value, list):
            raise ConfigurationError(f"{field}: must be a list of blocks. Nothing was created.")
    return value if isinstance(value, list) else []


def _parse(rotation: Mapping[str, Any]) -> Rotation:
    try:
        return parse_rotation(rotation)
    except ConfigurationError as error:
        raise ConfigurationError.combine([_renamed(each) for each in error.causes]) from None


def _renamed(error: KeyRotationError) -> ConfigurationError:
    """Replace the rotation's field name in an error by the form's parameter."""
    field, colon, sentence = str(error).partition(":")
    if field in ("rotation", "rotation.key"):
        # The error concerns several fields, which its sentence names.
        return ConfigurationError(sentence.strip())
    # The index of a list item follows the field's name.
    name = next((ours for theirs, ours in FIELDS.items() if field == theirs or field.startswith(f"{theirs}.")), field)
    return ConfigurationError(f"{name}{colon}{sentence}")


async def _check_expiry(before: DeploymentResponse | None, wanted: Wanted, now: datetime) -> None:
    """Refuse a schedule whose interval outlasts the key; otherwise only the next run would fail, after the expiry."""
    schedule = schedule_of(wanted.timetable, now) if wanted.timetable else None
    try:
        wanted.rotation.check_expiry(await longest_interval_after(before, schedule, wanted.active))
    except ValueError as error:
        raise ConfigurationError(f"interval_days: {error}. Nothing was created.") from None


async def _check(rotation: Rotation) -> tuple[BlockCheck, dict[str, str]]:
    """Verify that no place is used twice, and that the connection and all destinations work (concurrently).

    Returns:
        What was seen of the connection, and where each destination points.
    """
    in_use = {name: users - {rotation.name} for name, users in (await destinations_in_use()).items()}
    checks = [_check_destination(name, in_use.get(name, set())) for name in rotation.destinations]
    seen, *checked = await gather_all([check_connection(rotation.connection, "connection"), *checks])
    outcomes = dict(zip(rotation.destinations, checked, strict=True))
    types = {name.partition("/")[0] for name, outcome in outcomes.items() if outcome.place != name}
    others = [name for name, users in in_use.items() if users and name.partition("/")[0] in types]
    meant: dict[str | None, str] = {place: name for name, place in (await places_of(others)).items()}
    for name, outcome in outcomes.items():
        if (other := meant.setdefault(outcome.place, name)) != name:
            of = f" of the rotation {min(users)}" if (users := in_use.get(other)) else ""
            raise ConfigurationError(
                f"destinations: {other}{of} and {name} point to the same place, {outcome.place}. Nothing was created."
            )
    return seen, {name: outcome.place or name for name, outcome in outcomes.items()}


async def _check_destination(name: str, others: set[str]) -> BlockCheck:
    if others:
        # Two rotations would overwrite each other's key.
        raise ConfigurationError(
            f"destinations: {name} is already a destination of the rotation {min(others)}. Nothing was created."
        )
    return await check_destination(name, "destinations")


async def _review(before: DeploymentResponse | None, wanted: Wanted) -> str:
    """Write an artifact with each field before and after, and return the final message."""
    name = wanted.rotation.name
    present = as_settings(before) if before else {"key": {}, "retirement": {}}
    timetable = str(wanted.timetable) if wanted.timetable else present.get("schedule")
    after = settings_of(wanted.rotation.model_dump(), timetable, wanted.active)
    changes = differences(present, after)
    title = f"Rotation {name} would be {'added' if before is None else 'changed'}"
    message = (
        f"Review only, nothing was changed: the artifact add-rotation-{name} shows each field before and after. To do "
        "it, choose Copy to new run in this run's menu, and switch Review only off."
    )
    page = "\n".join([f"# {title}", "", message, "", *change_table(changes)])
    await show_markdown(f"add-rotation-{name}", page, f"Review of add-rotation for {name}")
    return message


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
    first = wanted.timetable.next_rotation(now, last) if wanted.timetable else None
    schedule = schedule_of(wanted.timetable, first) if wanted.timetable and first else None
    after = await save_deployment(before, wanted.rotation, schedule, wanted.active)
    changes = differences(as_settings(before), as_settings(after)) if before else {}
    run = await make_first_key(after) if starts else None
    left = [*left_behind(ledger), *about_to_leave(ledger, points_to, wanted.rotation.usable_overlap)]
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
    first: datetime | None,
    run: FlowRun | None,
) -> str:
    what = f"The rotation {wanted.rotation.name} was " + ("added" if before is None else "changed")
    if before is not None and not changes:
        what = f"The rotation {wanted.rotation.name} is unchanged"
    when = f"next rotation at {show_time(first)}" if first else "its schedule is as before"
    if not wanted.active:
        when = "it rotates only when run manually"
    elif before is not None and wanted.timetable and not {"schedule", "auto_rotation"} & set(changes):
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
    if wanted.timetable and wanted.active:
        lines += [f"- Schedule: {wanted.timetable}"]
    skipped = wanted.timetable.skipped(now) if wanted.timetable and wanted.active else None
    if wanted.timetable and skipped:
        lines += [
            f"- On {skipped} the clocks skip {wanted.timetable.starts:%H:%M}: a rotation on that day runs an hour off."
        ]
    if changes is not None:
        lines += ["", "## Changes", "", *change_table(changes)]
    return "\n".join(lines)
