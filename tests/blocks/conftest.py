"""The Vault servers of this folder's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.blocks.vault import vaults

BOTH = [
    "stand-in",
    pytest.param("real", marks=pytest.mark.skipif(vaults.BINARY is None, reason="neither vault nor bao is on PATH")),
]


@pytest.fixture(scope="session", params=BOTH)
def vault(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[vaults.TestVault]:
    """The stand-in, and a real Vault if a binary is on PATH."""
    home: Path = tmp_path_factory.mktemp("vault")
    with vaults.stand_in() if request.param == "stand-in" else vaults.real(home) as running:
        yield running


@pytest.fixture(params=BOTH)
def sealed_vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a sealed Vault."""
    with vaults.sealed_stand_in() if request.param == "stand-in" else vaults.sealed_real(tmp_path) as url:
        yield url
