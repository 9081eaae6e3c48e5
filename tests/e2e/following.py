"""Follow a how-to page against the stand-ins, and run the rotation that it leads to."""

from __future__ import annotations

from pathlib import Path

from flows import rotate
from tasks.model.rotation import Rotation
from tests.docs import pages
from tests.e2e.conftest import Services


def follow(page: str, services: Services, directory: Path, typed: str = "", **env: str) -> None:
    """Follow a page against the stand-ins; each command succeeds and prints what the page promises."""
    here = {
        "https://openrouter.ai/api/v1": services.openrouter_url,
        "https://app.infisical.com": services.infisical_url,
        "https://vault.example.com:8200": services.vault_url,
        "(management_key=management_key)": f'(management_key=management_key, base_url="{services.openrouter_url}")',
    }
    promises = pages.follow(pages.read(page), directory, here, {**services.stack.env, **env}, typed)
    for promised, printed in promises:
        assert pages.prints(promised, printed), f"promised:\n{promised}\nprinted:\n{printed}"


async def rotated(services: Services, rotation: Rotation) -> str:
    """Run a rotation without an overlap, and return the only live key."""
    state = await rotate(rotation, return_state=True)
    assert state.is_completed(), state.message
    [live] = services.openrouter.live_keys()
    return live.secret
