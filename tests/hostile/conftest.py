"""What all hostile tests need."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_collection_in_the_depth() -> Iterator[None]:
    """Collect no garbage during a test: at the recursion limit of an endless nesting, foreign finalizers fail."""
    gc.disable()
    yield
    gc.enable()
