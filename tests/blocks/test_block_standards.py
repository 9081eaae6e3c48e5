"""Prefect's own standard suite for blocks, with every block of this project."""

from __future__ import annotations

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from prefect.utilities.dispatch import get_registry_for_type

import blocks

SLUGS = {
    "OpenRouterCredentials": "openrouter-credentials",
    "VaultCredentials": "vault-credentials",
    "VaultSecret": "vault-secret",
    "InfisicalCredentials": "infisical-credentials",
    "InfisicalSecret": "infisical-secret",
}


@pytest.mark.parametrize("block", blocks.BLOCKS, ids=lambda block: block.__name__)
class TestAllBlocksAdhereToStandards(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:
        """The block class under test."""
        return block

    @pytest.mark.skip(reason="it would open the logo's URL; tests speak to loopback only")
    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """Replaced by a test below that needs no network."""


def test_the_catalog_offers_no_block_that_nobody_can_make() -> None:
    """Prefect's server registers every block class in this package, so abstract ones must not be among them."""
    found = [block for block in (get_registry_for_type(Block) or {}).values() if block.__module__.startswith("blocks.")]

    assert set(found) == set(blocks.BLOCKS)


@pytest.mark.parametrize("block", blocks.BLOCKS, ids=lambda block: block.__name__)
def test_the_create_form_explains_itself(block: type[Block]) -> None:
    """Slug, logo and description are set, and every field has a title."""
    assert block.get_block_type_slug() == SLUGS[block.__name__]
    assert str(block._logo_url).startswith("https://")
    assert str(block._description).endswith("To try a saved one, run check-connections with its name.")
    assert all(field.title for field in block.model_fields.values())


def test_every_block_is_exported_and_registered() -> None:
    """The package exports exactly the blocks that a server registers."""
    assert {block.__name__ for block in blocks.BLOCKS} == set(blocks.__all__) - {"BLOCKS"} == set(SLUGS)
