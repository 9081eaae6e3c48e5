"""What `check-connections` reports about Prefect's slots; it reports nothing about what it cannot see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import prefect
import pytest
from prefect.context import AsyncClientContext
from prefect.settings import PREFECT_API_URL, Settings, temporary_settings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sandbox.server import running
from tasks.world.slots import IN_MEMORY, LEASES_IN_MEMORY, slot_warnings


class Server:
    """The part of Prefect's API that the check uses."""

    def __init__(self) -> None:
        self.settings: Response = JSONResponse(Settings().model_dump(mode="json"))
        self.limits: Response = JSONResponse([])
        self.app = Starlette(
            routes=[
                Route("/api/admin/version", self.version),
                Route("/api/admin/settings", self.show_settings),
                Route("/api/v2/concurrency_limits/filter", self.list_limits, methods=["POST"]),
            ]
        )

    async def version(self, _request: Request) -> Response:
        """Return the version, which the client requests first."""
        return JSONResponse(prefect.__version__)

    async def show_settings(self, _request: Request) -> Response:
        """Return the settings of the server."""
        return self.settings

    async def list_limits(self, _request: Request) -> Response:
        """Return the concurrency limits."""
        return self.limits

    def stores_leases_in(self, module: str) -> None:
        """Set the lease storage."""
        self.settings = JSONResponse({"server": {"concurrency": {"lease_storage": module}}})

    def has_limits(self, **active: Any) -> None:
        """Set the concurrency limits."""
        self.limits = JSONResponse(
            [{"id": name, "name": name, "active": is_active} for name, is_active in active.items()]
        )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server with persistent leases and active limits."""
    server = Server()
    server.stores_leases_in("prefect.server.concurrency.lease_storage.filesystem")
    with running(server.app) as url, temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        async with AsyncClientContext.get_or_create():
            yield server


def test_prefects_default_is_what_is_warned_of() -> None:
    """The name of the module is Prefect's default, as `GET /admin/settings` shows it."""
    assert Settings().model_dump(mode="json")["server"]["concurrency"]["lease_storage"] == IN_MEMORY


async def test_leases_that_a_restart_loses_are_warned_of(server: Server) -> None:
    """Given Prefect's default lease storage, the warning names the setting to change."""
    server.stores_leases_in(IN_MEMORY)

    assert await slot_warnings() == [LEASES_IN_MEMORY]


async def test_leases_in_files_are_not_warned_of(server: Server) -> None:
    """Given a lease storage that survives a restart, there is no warning."""
    assert await slot_warnings() == []


async def test_a_limit_of_a_rotation_that_is_switched_off_is_warned_of(server: Server) -> None:
    """Given several limits, only inactive ones of rotations lead to a warning."""
    server.has_limits(**{"key-rotation_a": False, "key-rotation_b": True, "theirs": False, "key-rotation-x": False})

    (warning,) = await slot_warnings()

    assert warning.startswith("Concurrency limits of rotations are switched off: key-rotation_a.")


async def test_many_limits_are_counted(server: Server) -> None:
    """Given many such limits, the message names the first few and counts the others, to stay readable."""
    server.has_limits(**{f"key-rotation_{number}": False for number in range(10)})

    (warning,) = await slot_warnings()

    assert "key-rotation_0, key-rotation_1, key-rotation_2 and 7 more." in warning


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"detail": "Not Found"}, 404),
        JSONResponse({"exception_message": "Unauthorized"}, 401),
        JSONResponse({"detail": "Forbidden"}, 403),
        PlainTextResponse("<html>log in</html>"),
        JSONResponse({"server": {}}),
        JSONResponse({"exception_message": "Internal Server Error"}, 500),
    ],
    ids=["Prefect Cloud", "not logged in", "a proxy refuses", "a login page", "other settings", "out of order"],
)
async def test_what_cannot_be_seen_is_not_warned_of(server: Server, answer: Response) -> None:
    """Given an API that hides its settings or its limits, there is no warning about them."""
    server.settings = server.limits = answer

    assert await slot_warnings() == []
