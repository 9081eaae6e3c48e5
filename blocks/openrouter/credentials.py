"""The credentials block of OpenRouter: a management key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from prefect.blocks.abstract import CredentialsBlock
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator

from blocks.openrouter.client import OpenRouterClient
from blocks.stored import stored_name
from blocks.urls import safe_base_url

OPENROUTER_URL = "https://openrouter.ai/api/v1"


class OpenRouterCredentials(CredentialsBlock):
    """A connection to OpenRouter: the management key that creates, reads, changes and deletes API keys.

    Attributes:
        management_key: The management key.
        base_url: The base URL of OpenRouter's API.
        remind_after: How long the management key may be in use before `check-connections` warns; at least a day.

    Example:
        List the names of all keys:

        ```python
        from blocks import OpenRouterCredentials

        credentials = OpenRouterCredentials.load("BLOCK_NAME")

        async with credentials.get_client() as openrouter:
            names = [key.name async for key in openrouter.list_keys()]
        ```
    """

    # An error must not quote a refused value.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "OpenRouter Credentials"
    _block_type_slug: ClassVar[str] = "openrouter-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/OpenRouterTeam.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl(
        "https://openrouter.ai/docs/guides/overview/auth/management-api-keys"
    )
    _description: ClassVar[str] = (
        "A connection to OpenRouter: a management key, which can create and delete API keys but not call models."
        " To try a saved one, run check-connections with its name."
    )

    management_key: SecretStr = Field(
        title="Management key",
        description="A management key of the account, created at openrouter.ai under Settings, Management Keys.",
    )
    base_url: str = Field(
        default=OPENROUTER_URL,
        title="Base URL",
        description="The base URL of OpenRouter's API; https, or plain http on loopback only.",
    )

    remind_after: timedelta = Field(
        default=timedelta(days=90),
        title="Remind after",
        description="How long the management key may be in use before a warning to exchange it, such as P90D.",
        ge=timedelta(days=1),
        le=timedelta(days=3650),
    )

    @field_validator("management_key")
    @classmethod
    def _printable(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("management_key must be a key without spaces or line breaks.")
        return value

    @field_validator("base_url")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_base_url(value, "base_url")

    def get_client(self, **how: Any) -> OpenRouterClient:
        """Return a client with this management key; use it in `async with`, or call its `aclose`.

        Args:
            **how: For tests: `transport` and `sleep` of `OpenRouterClient`.

        Returns:
            The client.
        """
        return OpenRouterClient(self.management_key, self.base_url, block=stored_name(self), **how)

    async def check(self) -> str:
        """Check that the management key may manage keys.

        Returns:
            What works, in one sentence.

        Raises:
            KeyRotationError: It does not work; the message says why.
        """
        async with self.get_client() as client:
            return await client.check()
