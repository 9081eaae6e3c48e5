"""The checks of a block alone."""

from __future__ import annotations

from datetime import timedelta

from blocks import VaultCredentials
from blocks.vault.auth import TokenAuth
from sandbox.server import running
from sandbox.vault import create_app
from sandbox.vault_tokens import VaultSandbox
from tasks.world.checks import check_block

NAME = "vault-credentials/checkout"


async def test_the_check_of_a_login_alone_tells_when_its_token_expires() -> None:
    """A person who has just saved a login sees its expiry, as that of a destination with this login."""
    sandbox = VaultSandbox()
    token = sandbox.add_token({"*": {"root"}}, timedelta(days=3))
    with running(create_app(sandbox)) as url:
        login = VaultCredentials(url=url, auth=TokenAuth(token=token))

        outcome = await check_block(NAME, "block", {NAME: login})

    assert outcome.ends is not None
    assert "accepts this login" in outcome.sentence
