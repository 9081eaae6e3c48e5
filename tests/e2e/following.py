"""Follow a how-to page against the stand-ins, and run the rotation that it leads to."""

from __future__ import annotations

from pathlib import Path

from flows import rotate
from tasks.model.rotation import Rotation
from tests.docs import pages
from tests.e2e.conftest import World


def follow(page: str, world: World, directory: Path, typed: str = "", **env: str) -> None:
    """Follow a page against the stand-ins; each command succeeds and prints what the page promises."""
    here = {
        "https://openrouter.ai/api/v1": world.openrouter_url,
        "https://app.infisical.com": world.infisical_url,
        "https://vault.example.com:8200": world.vault_url,
        "(management_key=management_key)": f'(management_key=management_key, base_url="{world.openrouter_url}")',
    }
    promises = pages.follow(pages.read(page), directory, here, {**world.stack.env, **env}, typed)
    for promised, printed in promises:
        assert pages.prints(promised, printed), f"promised:\n{promised}\nprinted:\n{printed}"


async def rotated(world: World, rotation: Rotation) -> str:
    """Run a rotation without an overlap, and return the only live key."""
    state = await rotate(rotation, return_state=True)
    assert state.is_completed(), state.message
    [live] = world.openrouter.live_keys()
    return live.secret
