"""Audit an account: compare OpenRouter, the ledgers, the destinations and the deployments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

from prefect import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from blocks.errors import ConfigurationError, ForbiddenError, KeyRotationError, MissingBlockError, UnauthorizedError
from flows.forms import form_field
from flows.runs import Conclusion, conclude, open_run
from flows.show.artifacts import show_table
from flows.show.audit_report import as_description, as_summary, as_table
from flows.show.overview import refresh_overview
from tasks.audit.compare import compare
from tasks.audit.findings import Finding, Kind, Report
from tasks.audit.ledgers import connections_in_use
from tasks.audit.repair import OpenRotation, repair_findings
from tasks.model.events import Event
from tasks.model.rotation import is_slug
from tasks.world.orchestrator import PrefectWorld
from tasks.world.ports import KeyReader, World
from tasks.world.run import Run
from tasks.world.secrecy import secret_flow

DEFAULT_OLDER_THAN_DAYS = 90
MAX_OLDER_THAN_DAYS = 36_500


@secret_flow("audit")
async def audit(
    connection: Annotated[str, form_field("Connection")] = "",
    older_than_days: Annotated[int, form_field("Report unmanaged keys older than (days)")] = DEFAULT_OLDER_THAN_DAYS,
    repair: Annotated[bool, form_field("Repair")] = False,
) -> State[None]:
    """Compare every key of an account with all ledgers, destinations and deployments, and report each difference.

    Args:
        connection: Name of the openrouter-credentials block to audit. Empty audits every one that is in use.
        older_than_days: Age in days from which a key without a rotation is reported.
        repair: Delete or supersede keys in no ledger, make one current if all destinations hold it, restore ledgers.

    Returns:
        The final state: Failed if a finding requires action; its message starts with the most severe one.
    """
    async with conclude() as conclusion:
        older_than = check_audit(connection, older_than_days, repair)
        async with PrefectWorld() as world:
            connections = [connection] if connection else await connections_in_use(world)
            reports, failures = await audit_each(world, connections, older_than, _open_rotation if repair else None)
        for report in reports:
            await show_table(f"audit-{report.connection}", as_table(report), as_description(report, flow_run.get_id()))
        if repair:
            await refresh_overview(datetime.now(UTC))
        needs_person = any(report.needing_person() for report in reports)
        if failures and not needs_person:
            raise KeyRotationError.combine(failures) if len(failures) > 1 else failures[0]
        conclusion.message = as_summary(reports, failures)
        conclusion.state = (Failed if needs_person else Completed)(message=conclusion.message)
    return conclusion.state


async def audit_each(
    world: World, connections: Sequence[str], older_than: timedelta, open_rotation: OpenRotation | None
) -> tuple[list[Report], list[KeyRotationError]]:
    """Audit connections one by one; a failed audit does not stop the others.

    Args:
        world: Access to everything outside of the process.
        connections: Names of the connections.
        older_than: Age from which a key without a rotation is reported.
        open_rotation: Takes a rotation's slot for a repair; `None` changes nothing.

    Returns:
        The reports, and the failures of the audits that could not be completed.
    """
    reports: list[Report] = []
    failures: list[KeyRotationError] = []
    for connection in connections:
        try:
            reports.append(await follow_audit(world, connection, older_than, open_rotation))
        except KeyRotationError as error:
            failures.append(error)
    return reports, failures


def check_audit(connection: object, older_than_days: object, repair: object) -> timedelta:
    """Validate the parameters and return the age from which a key without a rotation is reported.

    Raises:
        ConfigurationError: A parameter is invalid; the message names it.
    """
    if connection != "" and not (isinstance(connection, str) and is_slug(connection)):
        raise ConfigurationError(
            "connection: must be the name of an openrouter-credentials block, or empty for all that are in use."
        )
    is_number = isinstance(older_than_days, int) and not isinstance(older_than_days, bool)
    if not is_number or not 0 <= int(str(older_than_days)) <= MAX_OLDER_THAN_DAYS:
        raise ConfigurationError(f"older_than_days: must be a whole number from 0 to {MAX_OLDER_THAN_DAYS}.")
    if not isinstance(repair, bool):
        raise ConfigurationError("repair: must be true or false.")
    return timedelta(days=int(str(older_than_days)))


@asynccontextmanager
async def _open_rotation(name: str) -> AsyncIterator[Run]:
    conclusion = Conclusion()
    async with open_run(name, conclusion) as run:
        run.step = "repair"
        conclusion.message = "Checked by an audit with repair."
        yield run
    if conclusion.error is not None:
        raise conclusion.error


async def follow_audit(
    world: World, connection: str, older_than: timedelta, open_rotation: OpenRotation | None
) -> Report:
    """Audit a connection's account, and emit an event for each finding.

    Args:
        world: Access to everything outside of the process.
        connection: Name of the connection.
        older_than: Age from which a key without a rotation is reported.
        open_rotation: Takes a rotation's slot for a repair; `None` changes nothing.

    Returns:
        The findings, including the repaired ones.

    Raises:
        KeyRotationError: Something could not be read, so the audit would be incomplete.
    """
    try:
        openrouter: KeyReader = await world.connection(connection)
    except MissingBlockError:
        raise MissingBlockError(
            f"connection: the block openrouter-credentials/{connection} does not exist, so nobody can look at the keys "
            "that were made with it. Make it again; if that is impossible, write them off with write-off-key. Nothing "
            "was changed."
        ) from None
    at = world.now()
    try:
        comparison = await compare(world, connection, openrouter, older_than)
    except (UnauthorizedError, ForbiddenError) as error:
        refused = Finding(Kind.MANAGEMENT_KEY_REFUSED, await _why_refused(openrouter, error))
        counts, found = None, [refused]
    else:
        counts, found = comparison.counts, comparison.findings
        if open_rotation is not None:
            found = await repair_findings(comparison, connection, open_rotation)
    findings = tuple(sorted(found, key=lambda finding: (finding.severity.value, finding.kind, finding.rotation)))
    for finding in findings:
        await _emit(world, connection, finding)
    return Report(connection, at, counts, findings)


async def _why_refused(openrouter: KeyReader, error: KeyRotationError) -> str:
    try:
        await openrouter.check()
    except KeyRotationError as refusal:
        return str(refusal)
    return str(error)


async def _emit(world: World, connection: str, finding: Finding) -> None:
    event = Event.ORPHAN_FOUND if finding.kind is Kind.ORPHAN else Event.AUDIT_FINDING
    payload = {
        "connection": connection,
        "kind": finding.kind.value,
        "severity": finding.severity.name.lower(),
        "sentence": finding.sentence,
        "key_label": finding.key_label,
        "key_hash": finding.key_hash,
    }
    # A finding without a rotation concerns the connection; a rotation's name cannot contain a colon.
    await world.emit(event, finding.rotation or f"connection:{connection}", **payload)
