"""A key that was in no ledger, as an entry of its rotation's ledger."""

from __future__ import annotations

from datetime import datetime

from blocks.openrouter.keys import ApiKey
from tasks.model.keys import Marker
from tasks.model.records import Superseded


def as_superseded(key: ApiKey, mark: Marker, connection: str, revoke_at: datetime) -> Superseded:
    """Return a key that was found by its marker as a superseded one; its fingerprint is unknown."""
    return Superseded(
        hash=key.hash,
        label=key.label,
        fingerprint="",
        made_by=mark.run_id,
        connection=connection,
        workspace_id=key.workspace_id,
        revoke_at=revoke_at,
    )
