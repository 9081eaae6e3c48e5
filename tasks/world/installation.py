"""The id of a Prefect installation, which is in the marker of every new key: created once, exclusively.

It is a Prefect variable, so a restored database keeps it and another server has another one. Each ledger stores it,
too, which saves a read per rotation, and allows a deleted variable to be recreated with the same id.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from string import ascii_lowercase
from typing import Any

from prefect.client.schemas.actions import VariableCreate
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectAlreadyExists

from blocks.errors import ConfigurationError, ServiceError
from tasks.model.keys import INSTALLATION_LENGTH, Marker, is_installation
from tasks.world.api import OWN_TAG, api_errors
from tasks.world.gate import persistently, sent_once
from tasks.world.ledgers import all_ledgers
from tasks.world.ports import World

VARIABLE = f"{OWN_TAG}_installation"
"""The variable's name. It cannot be that of a ledger's term, which ends with a number."""


async def read_or_make_installation() -> str:
    """Return the id of this Prefect installation; create it if there is none.

    Raises:
        ConfigurationError: The variable holds something else.
        ServiceError: Prefect's API failed.
    """
    stored = await _read()
    if stored is None:
        remembered = remembered_in([value async for _, value in all_ledgers()])
        await _make(
            min(remembered, default="".join(secrets.choice(ascii_lowercase) for _ in range(INSTALLATION_LENGTH)))
        )
        stored = await _read()
    if stored is None:
        raise ServiceError(f"Prefect has just stored the variable {VARIABLE}, and does not show it.", retryable=True)
    if not is_installation(stored):
        raise ConfigurationError(
            f"The Prefect variable {VARIABLE} must hold {INSTALLATION_LENGTH} lowercase letters: undo its edit, or put "
            "in the id that stands in the names of this installation's keys at OpenRouter. Nothing was created."
        )
    return stored


async def _read() -> Any:
    client, _ = get_or_create_client()
    with api_errors(f"reading the variable {VARIABLE}"):
        variable = await client.read_variable_by_name(VARIABLE)
    return None if variable is None else variable.value


async def _make(installation: str) -> None:
    async def attempt() -> None:
        # If several runs create it, one succeeds, and all use what is stored then.
        with suppress(ObjectAlreadyExists):
            async with sent_once(f"making the variable {VARIABLE}") as client:
                await client.create_variable(VariableCreate(name=VARIABLE, value=installation, tags=[OWN_TAG]))

    await persistently(attempt)


def remembered_in(ledgers: Iterable[Any]) -> set[str]:
    """Return the installation ids in stored ledgers, readable or not."""
    found = [value.get("installation") for value in ledgers if isinstance(value, Mapping)]
    return {each for each in found if is_installation(each)}


async def made_here(world: World, marks: Iterable[Marker], ledgers: Iterable[Any]) -> set[Marker]:
    """Return those markers whose keys this installation made.

    Such a key carries this installation's id, or one in a ledger of it. A key of an earlier version carries none, and
    belongs to this installation if its server knows the flow run.

    Raises:
        ConfigurationError: The variable with the installation's id holds something else.
        ServiceError: Prefect's API failed.
    """
    all_marks = set(marks)
    former = {mark.run_id for mark in all_marks if not mark.installation}
    installations = {await world.installation()} | remembered_in(ledgers)
    known = await world.known_runs(former) if former else set()
    return {mark for mark in all_marks if mark.is_of(installations, known)}
