"""The credentials block of Infisical."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, SecretStr, field_validator

from blocks.infisical.client import InfisicalClient
from blocks.login import LoginBlock
from blocks.stored import stored_name
from blocks.urls import safe_base_url

INFISICAL_URL = "https://app.infisical.com"
MAX_TEXT = 255


def valid_text(field: str, value: str) -> str:
    """Return a name or an id unchanged; raise `ValueError` if Infisical would store a different one."""
    # Infisical strips leading and trailing blanks, which would change the name.
    if not value or len(value) > MAX_TEXT or not value.isprintable() or value != value.strip() or value in {".", ".."}:
        raise ValueError(f"{field} must be 1 to {MAX_TEXT} printable characters, without blanks at its ends.")
    return value


class InfisicalCredentials(LoginBlock):
    """A connection to Infisical: a machine identity with universal auth.

    Attributes:
        host: Infisical's base URL.
        client_id: The machine identity's client id.
        client_secret: The machine identity's client secret.

    Example:
        Check that the machine identity can log in:

        ```python
        from blocks import InfisicalCredentials

        credentials = InfisicalCredentials.load("BLOCK_NAME")
        try:
            await credentials.check()
        finally:
            await credentials.aclose()
        ```
    """

    # An error must not quote a refused value.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Infisical Credentials"
    _block_type_slug: ClassVar[str] = "infisical-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/Infisical.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl(
        "https://infisical.com/docs/documentation/platform/identities/universal-auth"
    )
    _description: ClassVar[str] = (
        "A connection to Infisical: a machine identity with universal auth."
        " To try a saved one, run check-connections with its name."
    )

    host: str = Field(
        default=INFISICAL_URL, title="Host", description="Infisical's base URL: its cloud, or your own instance."
    )
    client_id: str = Field(title="Client ID", description="The machine identity's client id.")
    client_secret: SecretStr = Field(
        min_length=1, max_length=MAX_TEXT, title="Client secret", description="The machine identity's client secret."
    )

    _client: InfisicalClient | None = PrivateAttr(default=None)

    @field_validator("host")
    @classmethod
    def _safe(cls, value: str) -> str:
        return safe_base_url(value, "host")

    @field_validator("client_id")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return valid_text("client_id", value)

    def get_client(self) -> InfisicalClient:
        """Return the client, opened once per block.

        Returns:
            The client; close it with `aclose`.
        """
        if self._client is None:
            self._client = InfisicalClient(self.host, self.client_id, self.client_secret, block=stored_name(self))
        return self._client

    async def aclose(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def unopened_copy(self) -> Self:
        """Return a copy of the block without its open connection.

        Returns:
            The copy, which opens its own connection.
        """
        copy = self.model_copy()
        copy._client = None  # noqa: SLF001 - of this very class
        return copy

    async def check(self) -> str:
        """Check that the machine identity can log in; close the connection with `aclose`.

        Returns:
            What works, in one sentence.

        Raises:
            KeyRotationError: It does not work; the message says why.
        """
        await self.get_client().log_in()
        return f"Infisical at {self.host} accepts the machine identity."
