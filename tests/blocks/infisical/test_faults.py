"""How a destination handles an Infisical that misbehaves."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette

from blocks import InfisicalSecret
from blocks.destination import Content
from blocks.errors import (
    ForbiddenError,
    NotFoundError,
    RateLimitedError,
    RejectedError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnexpectedAnswerError,
    UnreachableError,
)
from sandbox.infisical import CLIENT_SECRET, InfisicalSandbox
from sandbox.server import Fault
from tests.blocks.infisical.conftest import KEY

FAULTS: dict[str, tuple[Fault, type[ServiceError], bool]] = {
    "401": (Fault(status=401), UnauthorizedError, False),
    "403": (Fault(status=403), ForbiddenError, False),
    "404 of a proxy": (Fault(status=404, body="<html>not here</html>"), NotFoundError, False),
    "404 of a route": (Fault(status=404, body='{"message": "Route not found"}'), NotFoundError, False),
    "422": (Fault(status=422), RejectedError, False),
    "429": (Fault(status=429, headers={"Retry-After": "30"}), RateLimitedError, False),
    "500": (Fault(status=500), UnavailableError, True),
    "HTML": (Fault(status=200, body="<html>"), UnexpectedAnswerError, True),
    "truncated": (Fault(status=200, body='{"secret": {"secretValue": "sk-or'), UnexpectedAnswerError, True),
    "no field": (Fault(status=200, body='{"secrets": []}'), UnexpectedAnswerError, True),
    "dropped": (Fault(), UnreachableError, True),
}


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_has_its_error(
    secret: InfisicalSecret, server: tuple[str, Starlette], name: str, method: str
) -> None:
    """A fault of a read, a create or an update raises its class, and is never taken for an absent secret."""
    fault, error, outcome_unknown = FAULTS[name]
    leaky = f"{fault.body} {KEY.get_secret_value()} {CLIENT_SECRET}" if fault.body.startswith("<") else fault.body
    server[1].state.faults.add(Fault("before", method, "/raw/", fault.status, fault.headers, leaky))
    held = Content(SecretStr("old") if method == "PATCH" else None)

    with pytest.raises(ServiceError) as failed:
        await (secret.read_content() if method == "GET" else secret.write_content(KEY, held, {}))

    assert (type(failed.value), failed.value.outcome_unknown) == (error, outcome_unknown)
    assert secret.name in str(failed.value)


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422, 500])
async def test_no_error_quotes_a_secret(
    secret: InfisicalSecret, server: tuple[str, Starlette], sandbox: InfisicalSandbox, status: int, method: str
) -> None:
    """Even a response that contains every secret does not put one into the error."""
    held = await secret.read_content()
    leaky = [KEY.get_secret_value(), CLIENT_SECRET, *sandbox.tokens]
    server[1].state.faults.add(Fault("before", method, "/raw/", status, body=json.dumps({"message": " ".join(leaky)})))

    with pytest.raises(ServiceError) as failed:
        await (
            secret.read_content()
            if method == "GET"
            else secret.write_content(KEY, Content(KEY) if method == "PATCH" else held, {})
        )

    assert not [word for word in leaky if word in repr(failed.value)]
    assert failed.value.__suppress_context__ or failed.value.__context__ is None


async def test_a_hidden_value_is_not_taken_for_the_value(
    secret: InfisicalSecret, server: tuple[str, Starlette]
) -> None:
    """An identity that may see the secret but not its value gets an error instead of a placeholder."""
    hidden = '{"secret": {"secretValue": "<hidden-by-infisical>", "secretValueHidden": true}}'
    server[1].state.faults.add(Fault("before", "GET", "/raw/", 200, body=hidden))

    with pytest.raises(ForbiddenError, match="hides the value"):
        await secret.read_content()
