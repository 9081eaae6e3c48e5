"""An audit's report for people, on one connection or on all of them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from flows.audit import audit_each, check_audit
from flows.show.audit_report import as_description, as_summary, as_table
from sandbox.stack import CHECKOUT
from tasks.audit.findings import Finding, Kind, Report
from tasks.audit.ledgers import connections_in_use
from tests.tasks.audit.account import marked
from tests.tasks.conftest import FakeWorld


async def test_the_table_holds_no_secret_and_says_what_to_do(world: FakeWorld) -> None:
    """A reviewer reads each finding, its severity and what to do, but never a key."""
    await world.rotate()
    marked(world)
    world.later(hours=2)
    report = await world.audit()

    shown = f"{as_table(report)} {as_description(report, 'run-1')} {world.events}"

    assert "Audit with repair" in shown
    assert "Flow run: run-1" in shown
    assert "Keys checked: 2" in shown
    assert not any(secret in shown for secret in world.openrouter.secrets)


def test_the_manual_lists_every_kind_of_finding_with_its_severity() -> None:
    """Whoever reads the artifact can look up each kind of finding in the manual."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", (CHECKOUT / "docs/how-to/audit.md").read_text(), re.MULTILINE)

    assert dict(rows) == {kind.value: kind.severity.name.lower() for kind in Kind}


def test_an_audit_without_findings_says_so_in_its_table() -> None:
    """An empty table could be mistaken for an audit that did not run."""
    (row,) = as_table(Report("openrouter", FakeWorld().time, None, ()))

    assert row["details"] == "No findings."


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ((None, 90, False), "connection"),
        (("Open Router", 90, False), "connection"),
        (("openrouter", -1, False), "older_than_days"),
        (("openrouter", "90", False), "older_than_days"),
        (("openrouter", True, False), "older_than_days"),
        (("openrouter", 90, "yes"), "repair"),
    ],
)
def test_an_audit_that_cannot_work_is_refused(order: tuple[Any, Any, Any], field: str) -> None:
    """The refusal is one sentence that begins with the field."""
    with pytest.raises(Exception, match=rf"^{field}: ") as refused:
        check_audit(*order)
    assert type(refused.value).__name__ == "ConfigurationError"


# --- every connection in use ---


async def test_every_connection_that_a_rotation_or_a_ledger_names_is_audited(world: FakeWorld) -> None:
    """A connection that the rotation no longer uses is audited while the ledger still has a key of it."""
    await world.rotate()
    world.connections.add("other")
    world.deployed = world.rotation.model_copy(update={"connection": "other"})

    in_use = await connections_in_use(world)
    reports, failures = await audit_each(world, in_use, timedelta(days=90), None)

    assert in_use == ["openrouter", "other"]
    assert [report.connection for report in reports] == in_use
    assert failures == []


async def test_an_audit_that_fails_does_not_stop_the_others(world: FakeWorld) -> None:
    """The summary lists the results first, then the connections that were not audited."""
    await world.rotate()

    reports, failures = await audit_each(world, ["gone", "openrouter"], timedelta(days=90), None)

    assert [report.connection for report in reports] == ["openrouter"]
    said = as_summary(reports, failures)
    assert said.startswith("openrouter: 1 key checked")
    assert "Not audited: connection: the block openrouter-credentials/gone does not exist" in said
    assert said.endswith("if that is impossible, write them off with write-off-key. Nothing was changed.")


def test_a_summary_begins_with_what_requires_action() -> None:
    """However many connections are in order, the one that needs a person comes first."""
    fine = Report("fine", FakeWorld().time, None, ())
    bad = Report("bad", FakeWorld().time, None, (Finding(Kind.MANAGEMENT_KEY_REFUSED, "It is refused."),))

    assert as_summary([fine, bad], []).startswith("bad: Action required: 1 finding.")
    assert as_summary([], []) == "No rotation uses a connection, so there is nothing to audit."
