"""The start of a management key's use stays right, even if several runs check the same connection at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from pydantic import SecretStr

from blocks.openrouter.credentials import OpenRouterCredentials
from tasks.model.management_keys import InUse
from tasks.world.management_keys import PREFIX, remember_use, seen_in_use

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
REQUEST = httpx.Request("PATCH", "http://127.0.0.1/api/variables/name/a")


class Variables:
    """Prefect's client: other tasks continue between any two of its requests, and a create is exclusive."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] = {}
        self.deletes_before_update = 0

    async def read_variable_by_name(self, name: str) -> Variable | None:
        """Return a variable."""
        await asyncio.sleep(0)
        return Variable(name=name, value=self.stored[name]) if name in self.stored else None

    async def create_variable(self, variable: VariableCreate) -> None:
        """Create a variable."""
        await asyncio.sleep(0)
        if variable.name in self.stored:
            conflict = PrefectHTTPStatusError("", request=REQUEST, response=httpx.Response(409, request=REQUEST))
            raise ObjectAlreadyExists(http_exc=conflict)
        self.stored[variable.name] = variable.value

    async def update_variable(self, variable: VariableUpdate) -> None:
        """Overwrite a variable."""
        await asyncio.sleep(0)
        if self.deletes_before_update > 0:
            self.deletes_before_update -= 1
            del self.stored[str(variable.name)]
        if variable.name not in self.stored:
            raise PrefectHTTPStatusError("", request=REQUEST, response=httpx.Response(404, request=REQUEST))
        self.stored[variable.name] = variable.value


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Variables:
    """The variables on a server."""
    made = Variables()
    for module in ("prefect.variables", "tasks.world.management_keys"):
        monkeypatch.setattr(f"{module}.get_or_create_client", lambda: (made, False), raising=False)
    return made


async def check(now: datetime, remind_after: timedelta = timedelta(days=90)) -> InUse:
    """Record at a check that the connection is in use."""
    key = SecretStr("sk-or-v1-" + "0" * 64)
    credentials = OpenRouterCredentials(management_key=key, remind_after=remind_after)
    return await remember_use(seen_in_use("openrouter", credentials, None, now))


def noted(variables: Variables) -> InUse:
    """Return the stored record."""
    return InUse.model_validate(variables.stored[f"{PREFIX}openrouter"])


async def test_several_first_checks_of_a_connection_keep_the_earliest(variables: Variables) -> None:
    """Only one of several concurrent creates succeeds; the other checks do not fail, and the earliest start is kept."""
    await asyncio.gather(*[check(NOW - timedelta(minutes=minute)) for minute in (0, 2, 1, 3)])

    assert noted(variables).since == NOW - timedelta(minutes=3)


async def test_a_note_that_is_deleted_as_it_is_changed_is_made_again(variables: Variables) -> None:
    """A daily check deletes the record of a connection that no rotation uses yet, but the key's start is kept."""
    await check(NOW - timedelta(days=30))
    variables.deletes_before_update = 1

    await check(NOW, remind_after=timedelta(days=60))

    assert noted(variables).since == NOW - timedelta(days=30)
