"""Store since when each connection has used its management key, in a Prefect variable beside the block."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from typing import Any

from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.variables import Variable
from pydantic import ValidationError

from blocks.openrouter.credentials import OpenRouterCredentials
from tasks.model.keys import fingerprint
from tasks.model.management_keys import InUse
from tasks.world.api import api_errors, as_not_found, pages

PREFIX = "management-key_"
"""The prefix of these variables; no ledger's name starts with it."""
DOING = "reading since when management keys are in use"
ROUNDS = 5
"""How often several checks of one connection look at what the others have written; a check is not worth more."""


def seen_in_use(
    connection: str, credentials: OpenRouterCredentials, expires_at: datetime | None, now: datetime
) -> InUse:
    """Return that a connection uses its management key now, without storing it.

    Args:
        connection: The connection's name.
        credentials: Its block.
        expires_at: When the management key expires, UTC; `None` for never.
        now: The current time, UTC.
    """
    return InUse(
        connection=connection,
        fingerprint=fingerprint(credentials.management_key) or "",
        since=now,
        remind_after=credentials.remind_after,
        expires_at=expires_at,
    )


async def remember_use(seen: InUse) -> InUse:
    """Store since when a connection has used its management key; another key restarts the count.

    Args:
        seen: Its use as a check has seen it.

    Raises:
        ServiceError: Prefect's API failed.
    """
    for _ in range(ROUNDS):
        client, _ = get_or_create_client()
        with api_errors(DOING):
            stored = await client.read_variable_by_name(f"{PREFIX}{seen.connection}")
        before = _parse(stored.value) if stored else None
        # What an earlier round has found stays true, whatever others have written since.
        seen = seen.continued(before)
        if seen == before:
            break
        await _write(seen, is_new=stored is None)
    return seen


async def _write(key: InUse, *, is_new: bool) -> None:
    """Write it; where somebody else has made or deleted it since it was read, the next look finds that."""
    client, _ = get_or_create_client()
    name, value = f"{PREFIX}{key.connection}", key.model_dump(mode="json")
    doing = "writing since when a management key is in use"
    with suppress(ObjectAlreadyExists, ObjectNotFound), api_errors(doing), as_not_found():
        if is_new:
            await client.create_variable(VariableCreate(name=name, value=value))
        else:
            await client.update_variable(VariableUpdate(name=name, value=value))


async def all_in_use() -> list[InUse]:
    """Return since when each connection that was ever checked has used its management key.

    Raises:
        ServiceError: Prefect's API failed.
    """
    body = {"variables": {"name": {"like_": f"{PREFIX}%"}}, "sort": "NAME_ASC"}
    found = [entry async for page in pages("/variables/filter", body, DOING) for entry in page]
    stored = (_parse(entry.get("value")) for entry in found if str(entry.get("name")).startswith(PREFIX))
    return [each for each in stored if each]


async def forget_others(connections: Collection[str]) -> None:
    """Delete the entries of connections that no rotation uses any more.

    Raises:
        ServiceError: Prefect's API failed.
    """
    for each in await all_in_use():
        if each.connection not in connections:
            with api_errors("forgetting a management key"):
                await Variable.aunset(f"{PREFIX}{each.connection}")


def _parse(value: Any) -> InUse | None:
    try:
        return InUse.model_validate(value)
    except ValidationError:
        # An invalid value, for example after an edit by hand: the next check starts anew.
        return None
