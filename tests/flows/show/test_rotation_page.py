"""The table of keys on a rotation's page."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from flows.show.rotation_page import _keys
from tasks.model.ledger import Ledger
from tasks.model.records import Superseded

NOW = datetime(2026, 12, 1, 3, 30, tzinfo=UTC)
DISABLED = Superseded(
    hash="old",
    label="old",
    fingerprint="old",
    made_by=uuid4(),
    connection="openrouter",
    workspace_id=None,
    since=NOW,
    revoke_at=NOW,
    disabled=True,
)


def test_a_rotation_without_keys_has_no_empty_table() -> None:
    """A removed rotation has none, for example."""
    assert _keys(Ledger()) == ["No keys."]


def test_a_disabled_key_is_said_to_be_disabled_once() -> None:
    """The state is shown only once, beside its time."""
    [row] = [line for line in _keys(Ledger(superseded=(DISABLED,))) if "`old`" in line]

    assert row.startswith("| `old` | disabled | deleted at 2026-12-01 03:30 UTC |")
