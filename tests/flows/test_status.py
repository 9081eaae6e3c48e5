"""The commands for the terminal, without a reachable server."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings import PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED as CHECK_VERSION
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from flows import automations, status
from flows.show.overview import row
from sandbox.server import running
from sandbox.stack import CHECKOUT
from tasks.model.tries import TRIES_AGAIN
from tests.flows.show.test_overview import NOW, TRY, WELL, seen

NAMED = {"well": "COMPLETED", "broken": "FAILED"}


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (None, "Set PREFECT_API_URL"),
        ("http://127.0.0.1:9/api", "The Prefect server at http://127.0.0.1:9/api cannot be reached."),
    ],
)
def test_a_server_that_cannot_be_asked_is_told(
    url: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints one sentence instead of a traceback, and has an exit code for this case."""
    with temporary_settings({PREFECT_API_URL: url}):
        code = status.main()

    assert code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status_code", "body", "sentence"),
    [
        (401, "{}", "answered 401: set PREFECT_API_AUTH_STRING to its user and password."),
        (403, "<html>", "answered 403: set PREFECT_API_AUTH_STRING to its user and password."),
        (404, "{}", "answered 404: check PREFECT_API_URL, which ends in /api, and the server's log."),
        (200, "<html>", "did not answer as this version of Prefect does"),
        (200, "[]", "did not answer as this version of Prefect does"),
        (200, "null", "did not answer as this version of Prefect does"),
        (200, '"1.0.0"', "did not answer as this version of Prefect does"),
    ],
)
def test_a_server_that_answers_something_else_is_no_degraded_rotation(
    status_code: int, body: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Monitoring that cannot see rotations needs a person; the exit code 1 would wait for a day."""

    async def answer(_request: Request) -> Response:
        return Response(body, status_code)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    with (
        running(app) as url,
        temporary_settings({PREFECT_API_URL: f"{url.replace('//', '//operator:password@')}/api", CHECK_VERSION: True}),
    ):
        code = status.main(["--json"])

    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert f"The Prefect server at {url}/api {sentence}" in said.err


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({}, "answered 503: check PREFECT_API_URL"),
        ({"Prefect-Maintenance": "true"}, "has not answered everything within 0 seconds"),
    ],
    ids=["a proxy in maintenance", "a server in maintenance"],
)
def test_a_server_that_asks_to_come_back_in_an_hour_is_told_now(
    headers: dict[str, str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that hangs tells nobody anything; Prefect's client would wait, and in maintenance for ever."""
    monkeypatch.setattr("tasks.world.gate.LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("flows.server.ANSWERED_WITHIN_SECONDS", 0.4 if headers else 60)

    async def answer(_request: Request) -> Response:
        return Response("<html>", 503, headers={"Retry-After": "3600", **headers})

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    with running(app) as url, temporary_settings({PREFECT_API_URL: f"{url}/api", CHECK_VERSION: True}):
        code = status.main(["--json"])

    assert code == 2
    assert f"The Prefect server at {url}/api {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("states", "code"),
    [((), 0), (("COMPLETED",), 0), (("COMPLETED", TRIES_AGAIN), 1), ((TRIES_AGAIN, "FAILED", "COMPLETED"), 2)],
    ids=["no rotation", "healthy", "degraded", "a person is needed"],
)
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["table", "json"])
def test_the_exit_code_is_that_of_the_worst_rotation(
    states: tuple[str, ...], code: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitoring script needs only the code: 0 healthy, 1 degraded, 2 a person is needed."""
    rows = [row(replace(WELL, last_run=seen(state), next_run=TRY), NOW) for state in states]
    monkeypatch.setattr(status, "ask_prefect", lambda _: rows)

    assert status.main(arguments) == code


def test_the_exit_codes_are_documented() -> None:
    """The command's reference page lists them."""
    page = (CHECKOUT / "docs" / "reference" / "commands.md").read_text()

    assert [code for code in ("| 0 |", "| 1 |", "| 2 |") if code not in page] == []


def test_json_is_printed_worst_first(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is that of the table."""
    rows = [row(replace(WELL, name=name, last_run=seen(state)), NOW) for name, state in NAMED.items()]
    monkeypatch.setattr(status, "ask_prefect", lambda _: rows)

    status.main(["--json"])

    assert [each["rotation"] for each in json.loads(capsys.readouterr().out)] == ["broken", "well"]


def test_no_automation_is_made_at_a_server_that_nobody_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect would start a temporary server, and the automations would only seem to exist."""
    monkeypatch.setattr("sys.argv", ["automations"])

    with temporary_settings({PREFECT_API_URL: None}):
        code = automations.main()

    assert code == 1
    assert "Set PREFECT_API_URL" in capsys.readouterr().err
