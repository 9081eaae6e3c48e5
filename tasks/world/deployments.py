"""The deployments of rotations, and the intervals of their schedules."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import SCHEDULE_TYPES, IntervalSchedule, RRuleSchedule
from pydantic import TypeAdapter, ValidationError

from blocks.errors import ConfigurationError
from tasks.model.rotation import Rotation, parse_rotation
from tasks.model.schedules import SLUG, Timetable, read_rule
from tasks.world.api import OWN_TAG, Json, api_errors, pages

DATES_LOOKED_AT = 100
"""How many dates of a schedule are compared to find its longest interval; those of a cron line may be uneven."""


async def all_deployments() -> AsyncIterator[Json]:
    """Yield the deployments of all rotations.

    Yields:
        Each deployment of a flow `rotate` that has our tag or a rotation parameter, as the API returns it, by name. One
        made by hand may lack the tag; one of a foreign flow called `rotate` lacks the parameter.

    Raises:
        ServiceError: Prefect's API failed.
    """
    body = {"flows": {"name": {"any_": ["rotate"]}}, "sort": "NAME_ASC"}
    async for page in pages("/deployments/filter", body, doing := "reading the deployments"):
        with api_errors(doing):
            ours = [each for each in page if OWN_TAG in each["tags"] or "rotation" in each["parameters"]]
        for deployment in ours:
            yield deployment


async def _longest_gap(schedule: SCHEDULE_TYPES) -> timedelta | None:
    """Return the longest time between two dates of a schedule; `None` if it ends, because then it bounds nothing."""
    if isinstance(schedule, IntervalSchedule):
        return schedule.interval
    # Only the server package can compute the dates of cron lines and RRULEs; its import is slow.
    from prefect.server.schemas import schedules

    adapter: TypeAdapter[schedules.SCHEDULE_TYPES] = TypeAdapter(schedules.SCHEDULE_TYPES)
    dates = await adapter.validate_python(schedule.model_dump()).get_dates(n=DATES_LOOKED_AT)
    if len(dates) < DATES_LOOKED_AT:
        return None
    return max(later - earlier for earlier, later in pairwise(dates))


async def longest_interval(active: Iterable[SCHEDULE_TYPES]) -> timedelta:
    """Return an upper bound of the time between two runs of these schedules together; zero without one."""
    gaps = [await _longest_gap(schedule) for schedule in active]
    return min([gap for gap in gaps if gap is not None], default=timedelta(0))


async def longest_interval_of(deployment: DeploymentResponse) -> timedelta:
    """Return the longest time between two runs of a deployment's active schedules; zero without one."""
    return await longest_interval(each.schedule for each in deployment.schedules if each.active)


def rotation_of(deployment: DeploymentResponse) -> Rotation | None:
    """Return the rotation of a deployment; `None` if its parameters are invalid."""
    try:
        return parse_rotation(deployment.parameters.get("rotation"))
    except ConfigurationError:
        return None


def own_schedule(deployment: DeploymentResponse) -> DeploymentSchedule | None:
    """Return the schedule on which a deployment rotates; `None` if it has none, or only other schedules."""
    return next((each for each in deployment.schedules if each.slug == SLUG), None)


def rotates_by_itself(deployment: DeploymentResponse) -> bool:
    """Return whether a deployment rotates on its own schedule."""
    own = own_schedule(deployment)
    return bool(own and own.active and not deployment.paused)


def schedule_of(timetable: Timetable, first: datetime) -> RRuleSchedule:
    """Return Prefect's schedule for a timetable, starting with its first rotation."""
    return RRuleSchedule(rrule=timetable.rule(first), timezone=timetable.zone.key)


def accepts_zone(zone: str) -> bool:
    """Return whether Prefect accepts the name of a time zone in a schedule such as ours."""
    try:
        RRuleSchedule(rrule="FREQ=DAILY", timezone=zone)
    except ValidationError:
        return False
    return True


def read_timetable(schedule: SCHEDULE_TYPES) -> Timetable | None:
    """Return the timetable of a stored schedule; `None` if it is not a local time every so many days."""
    if isinstance(schedule, RRuleSchedule):
        return read_rule(schedule.rrule, schedule.timezone or "UTC")
    if isinstance(schedule, IntervalSchedule) and not schedule.interval % timedelta(days=1):
        zone = ZoneInfo(schedule.timezone or "UTC")
        return Timetable(schedule.interval.days, schedule.anchor_date.astimezone(zone).time(), zone)
    return None
