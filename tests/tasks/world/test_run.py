"""A run's writes to destinations, and its concurrent work."""

from __future__ import annotations

import asyncio
from typing import NoReturn
from unittest import mock
from uuid import uuid4

import pytest
from pydantic import SecretStr

from blocks.destination import Content, Destination
from blocks.errors import (
    ConfigurationError,
    DestinationError,
    KeyRotationError,
    MissingBlockError,
    OtherRunError,
    ServiceError,
    UnavailableError,
)
from tasks.world import run as module
from tasks.world.open_ledger import OpenLedger
from tasks.world.run import Run, gather_all
from tests.memory import Memory


async def fails(error: Exception) -> None:
    """Raise an error."""
    raise error


@pytest.mark.parametrize(
    ("errors", "kind", "sentence"),
    [
        ([ConfigurationError("a"), ConfigurationError("b")], ConfigurationError, "a b"),
        (
            [UnavailableError("Vault is sealed."), UnavailableError("Vault is sealed.")],
            UnavailableError,
            "Vault is sealed.",
        ),
        ([MissingBlockError("a"), ConfigurationError("b")], ConfigurationError, "a b"),
        ([ConfigurationError("a"), UnavailableError("b")], DestinationError, "a b"),
        ([UnavailableError("a"), OtherRunError("b")], OtherRunError, "b"),
    ],
    ids=["one kind", "one sentence", "one family", "two kinds", "the place was lost"],
)
async def test_several_failures_are_told_as_one(errors: list[Exception], kind: type[Exception], sentence: str) -> None:
    """Their nearest common class is kept, a repeated sentence appears once, and a lost place takes precedence."""
    with pytest.raises(KeyRotationError) as failed:
        await gather_all([fails(error) for error in errors])

    assert type(failed.value) is kind
    assert str(failed.value) == sentence


async def test_an_error_that_is_not_ours_is_not_told_as_ours() -> None:
    """A programming error must not look like a failed destination."""
    with pytest.raises(TypeError):
        await gather_all([fails(DestinationError("a")), fails(TypeError("b"))])


class Silent(Memory):
    """A ledger store that never answers."""

    async def newest(self) -> NoReturn:
        """Hang forever."""
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_destination_is_not_written_after_a_look_at_the_ledger_that_took_too_long() -> None:
    """The result of a slow check may be out of date, because another run may have taken over since."""
    place = mock.create_autospec(Destination, instance=True)
    place.place.return_value = "secret/checkout"
    run = Run("checkout", mock.Mock(), OpenLedger("checkout", Silent(), uuid4()), mock.Mock())

    with mock.patch.object(module, "WRITE_SECONDS", 0.01), pytest.raises(ServiceError, match="could not be written"):
        await run.write_to(place, SecretStr("key"), Content(None), {})

    place.write_content.assert_not_awaited()
