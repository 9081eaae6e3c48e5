"""Ledgers as Prefect stores them: one variable per rotation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import Variable
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from blocks.errors import PlaceLostError
from tasks.model.ledger import ledger_variable
from tasks.world.api import LEDGER_TAG, api_errors, pages


async def all_ledgers() -> AsyncIterator[tuple[str, Any]]:
    """Walk through the ledgers of all rotations.

    Yields:
        Each rotation's name, and the value of its variable.

    Raises:
        ServiceError: Prefect's API failed.
    """
    prefix = ledger_variable("")
    body = {"variables": {"name": {"like_": f"{prefix}%"}}, "sort": "NAME_ASC"}
    async for page in pages("/variables/filter", body, doing := "reading the ledgers"):
        with api_errors(doing):
            found = Variable.model_validate_list(page)
        for variable in found:
            # Prefect matches the name anywhere. The tag is not asked for: a value put back by hand has lost it.
            if variable.name.startswith(prefix):
                yield variable.name.removeprefix(prefix), variable.value


class VariableStore:
    """A ledger's place in Prefect: one variable per rotation.

    Args:
        rotation: The rotation's name.
    """

    def __init__(self, rotation: str) -> None:
        self._name = ledger_variable(rotation)

    async def read(self) -> Any | None:
        """Read the value, `None` where there is none."""
        client, _ = get_or_create_client()
        with api_errors("reading the ledger"):
            variable = await client.read_variable_by_name(self._name)
        return None if variable is None else variable.value

    async def create(self, value: dict[str, Any]) -> None:
        """Write the first value; `PlaceLostError` where there is one already."""
        client, _ = get_or_create_client()
        try:
            with api_errors("writing the ledger"):
                await client.create_variable(VariableCreate(name=self._name, value=value, tags=[LEDGER_TAG]))
        except ObjectAlreadyExists:
            raise PlaceLostError(f"Another run has just written {self._name}, so this one stopped.") from None

    async def update(self, value: dict[str, Any]) -> None:
        """Write the next value."""
        client, _ = get_or_create_client()
        with api_errors("writing the ledger"):
            await client.update_variable(VariableUpdate(name=self._name, value=value, tags=[LEDGER_TAG]))

    async def delete(self) -> None:
        """Delete the value."""
        client, _ = get_or_create_client()
        with suppress(ObjectNotFound), api_errors("deleting the ledger"):
            await client.delete_variable_by_name(self._name)
