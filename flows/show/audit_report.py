"""An audit's artifact and state message."""

from __future__ import annotations

from collections.abc import Sequence

from blocks.errors import KeyRotationError
from tasks.audit.findings import Report
from tasks.model.times import show_time

MAX_ROWS = 500
"""How many findings the artifact lists."""


def as_table(report: Report) -> list[dict[str, str]]:
    """Return one row per finding, the most severe first.

    A placeholder row means no findings; a last row counts the findings beyond `MAX_ROWS`.
    """
    rows = [
        {
            "severity": "repaired" if finding.repaired else finding.severity.name.lower(),
            "finding": finding.kind.value,
            "rotation": finding.rotation,
            "key": finding.key_label,
            "key hash": finding.key_hash,
            "details": finding.sentence,
            "action": "None." if finding.repaired else finding.kind.advice,
        }
        for finding in report.findings[:MAX_ROWS]
    ]
    nothing = {"severity": "none", "finding": "", "rotation": "", "key": "", "key hash": "", "action": "None."}
    if not rows:
        return [{**nothing, "details": "No findings."}]
    if left_out := len(report.findings) - len(rows):
        action = "Resolve the findings above, then audit again. Each finding is also an event."
        rows.append({**nothing, "details": f"Further findings, not shown: {left_out}.", "action": action})
    return rows


def as_description(report: Report, run_id: object) -> str:
    """Return the artifact's description: what was audited, when, by which run, and the number of keys."""
    lines = [f"# Audit of {report.connection}", "", as_sentence(report), ""]
    lines += [f"- Time: {show_time(report.at)}", f"- Flow run: {run_id}"]
    if report.counts is not None:
        lines += [
            f"- Keys checked: {report.counts.seen}, including disabled and expired ones",
            f"- Managed (in a ledger): {report.counts.of_rotations}",
            f"- Unrecorded (with a rotation marker, but in no ledger): {report.counts.unrecorded}",
            f"- Unmanaged (without a rotation marker): {report.counts.unmanaged}",
        ]
    return "\n".join(lines)


def as_sentence(report: Report) -> str:
    """Return the final message of an audit."""
    needing = report.needing_person()
    repaired = sum(finding.repaired for finding in report.findings)
    done = f" {repaired} repaired." if repaired else ""
    if needing:
        return (
            f"Action required: {_count(len(needing), 'finding')}. "
            f"First: {needing[0].sentence} {needing[0].kind.advice}{done}"
        )
    if report.counts is None:
        return "No keys could be checked."
    notices = len(report.findings) - repaired
    return (
        f"{_count(report.counts.seen, 'key')} checked: {report.counts.of_rotations} managed, "
        f"{report.counts.unrecorded} unrecorded, {report.counts.unmanaged} unmanaged. "
        f"{_count(notices, 'notice') if notices else 'No notices'}.{done}"
    )


def as_summary(reports: Sequence[Report], failures: Sequence[KeyRotationError]) -> str:
    """Return the final message of a run that audited several connections; those that require action come first.

    Args:
        reports: The reports.
        failures: The failures of the audits that could not be completed.
    """
    if len(reports) == 1 and not failures:
        return as_sentence(reports[0])
    worst_first = sorted(reports, key=lambda report: not report.needing_person())
    sentences = [f"{report.connection}: {as_sentence(report)}" for report in worst_first]
    sentences += [f"Not audited: {failure}" for failure in failures]
    return " ".join(sentences) or "No rotation uses a connection, so there is nothing to audit."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
