"""Several things at once: every one is waited for, and what failed is told as what it is."""

from __future__ import annotations

import pytest

from blocks.errors import ConfigurationError, DestinationError, KeyRotationError, PlaceLostError, UnavailableError
from tasks.world.run import gather_all


async def fails(error: Exception) -> None:
    """Fail."""
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
        ([ConfigurationError("a"), UnavailableError("b")], DestinationError, "a b"),
        ([UnavailableError("a"), PlaceLostError("b")], PlaceLostError, "b"),
    ],
    ids=["one kind", "one sentence", "two kinds", "the place was lost"],
)
async def test_several_failures_are_told_as_one(errors: list[Exception], kind: type[Exception], sentence: str) -> None:
    """Their common kind is kept, a repeated sentence is said once, and a lost place counts before all."""
    with pytest.raises(KeyRotationError) as failed:
        await gather_all([fails(error) for error in errors])

    assert type(failed.value) is kind
    assert str(failed.value) == sentence


async def test_an_error_that_is_not_ours_is_not_told_as_ours() -> None:
    """A mistake in the code must not look like a destination that failed."""
    with pytest.raises(TypeError):
        await gather_all([fails(DestinationError("a")), fails(TypeError("b"))])
