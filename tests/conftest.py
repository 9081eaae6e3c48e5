"""What every test shares."""

from __future__ import annotations

import pytest

from tasks.rotation import KeySettings, Rotation


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which the browser's tests take the documentation's pictures."""
    parser.addoption("--take-pictures", action="store_true", help="write docs/images from the tests in tests/browser")


@pytest.fixture
def rotation() -> Rotation:
    """A rotation with two destinations and the default overlap."""
    return Rotation(
        name="checkout",
        connection="openrouter",
        key=KeySettings(name="checkout service", limit_usd=50, limit_reset="monthly"),
        destinations=["vault-secret/checkout", "secret/checkout"],
    )
