"""What every test shares."""

from __future__ import annotations

import pytest

from tasks.rotation import KeySettings, Rotation


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option by which the browser's tests take the documentation's pictures."""
    parser.addoption("--take-pictures", action="store_true", help="write docs/images from the tests in tests/browser")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse to run without groups, where each process would start servers and workers for every group of tests."""
    if getattr(config.option, "loadgroup", False):
        grouped = [item for item in items if item.get_closest_marker("xdist_group")]
        if not all("@" in item.nodeid for item in grouped):
            raise pytest.UsageError("This pytest-xdist does not see xdist_group with this pytest.")


@pytest.fixture
def rotation() -> Rotation:
    """A rotation with two destinations and the default overlap."""
    return Rotation(
        name="checkout",
        connection="openrouter",
        key=KeySettings(name="checkout service", limit_usd=50, limit_reset="monthly"),
        destinations=["vault-secret/checkout", "secret/checkout"],
    )
