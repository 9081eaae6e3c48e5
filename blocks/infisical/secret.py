"""A destination: one secret in Infisical."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote

from pydantic import ConfigDict, Field, HttpUrl, SecretStr, ValidationInfo, field_validator

from blocks.destination import Content, DestinationBlock
from blocks.errors import ForbiddenError, RejectedError, UnexpectedAnswerError
from blocks.infisical.client import NoSuchSecretError
from blocks.infisical.credentials import MAX_TEXT, InfisicalCredentials, valid_text


class InfisicalSecret(DestinationBlock):
    """One secret in a project, environment and folder of Infisical; other secrets are never changed.

    Infisical has no check-and-set: the ledger keeps two runs apart, each write is sent once, and a key that a late
    write could still bring back is not deleted. Whether Infisical keeps older versions depends on its plan. Comment,
    tags and metadata of the secret are kept.

    Attributes:
        credentials: The connection to Infisical.
        project_id: The project's id.
        environment: The environment's slug.
        path: The folder's path.
        name: The secret's name.

    Example:
        Read a secret in any flow:

        ```python
        from blocks import InfisicalSecret

        secret = InfisicalSecret.load("BLOCK_NAME")
        value = secret.read_secret()
        ```

        In async code, load it with `await InfisicalSecret.aload("BLOCK_NAME")` and read it with
        `await secret.aread_secret()`.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "Infisical Secret"
    _block_type_slug: ClassVar[str] = "infisical-secret"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/Infisical.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl(
        "https://infisical.com/docs/documentation/platform/secrets-mgmt/project"
    )
    _description: ClassVar[str] = (
        "One secret in a project, environment and folder of Infisical."
        " To try a saved one, run check-connections with its name."
    )

    credentials: InfisicalCredentials = Field(title="Credentials", description="The connection to Infisical.")
    project_id: str = Field(title="Project ID", description="The project's id, as shown in its settings.")
    environment: str = Field(title="Environment", description="The environment's slug, such as prod.")
    path: str = Field(default="/", title="Path", description="The folder's path, such as / or /apps/checkout.")
    name: str = Field(title="Name", description="The secret's name, such as OPENROUTER_API_KEY.")

    @field_validator("project_id", "environment", "name")
    @classmethod
    def _one_line(cls, value: str, info: ValidationInfo) -> str:
        return valid_text(str(info.field_name), value)

    @field_validator("name")
    @classmethod
    def _storable(cls, value: str) -> str:
        if set(":/") & set(value):
            raise ValueError("name must not contain a colon or a slash: Infisical does not store such a secret.")
        return value

    @field_validator("path")
    @classmethod
    def _folder(cls, value: str) -> str:
        parts = [part for part in value.split("/") if part]
        if len(value) > MAX_TEXT or not value.isprintable() or {".", ".."} & set(parts) or value != value.strip():
            raise ValueError("path must be a folder such as /apps/checkout, without '.' or '..' segments.")
        return "/" + "/".join(parts)

    def place(self) -> str:
        """Return the name of the place for messages.

        Returns:
            The secret's name, path, environment and project, and the host: instances may have equal project ids.
        """
        where = f"{self.path} in {self.environment} of the Infisical project {self.project_id}"
        return f"{self.name} at {where} at {self.credentials.host}"

    async def read_content(self) -> Content:
        """Read the stored value, without expanding references or following imports.

        Returns:
            The secret with its version, which Infisical counts but does not check. A `Content` without a value is
            returned only if Infisical confirms that the folder exists and the secret does not. Any other 404 is an
            error, so that a proxy's response is never taken for an empty place.

        Raises:
            NotFoundError: The project, the environment or the folder does not exist.
            ServiceError: The secret cannot be read.
        """
        doing = f"reading {self.place()}"
        params: dict[str, str | int] = {
            **self._where(),
            "viewSecretValue": "true",
            "expandSecretReferences": "false",
            "include_imports": "false",
        }
        try:
            secret = (await self._request("GET", doing, params=params)).get("secret")
        except NoSuchSecretError:
            return Content(None)
        secret = secret if isinstance(secret, dict) else {}
        value, version = secret.get("secretValue"), secret.get("version")
        if secret.get("secretValueHidden") is True:
            raise ForbiddenError(f"Infisical hides the value from this machine identity while {doing}.")
        if not isinstance(value, str):
            raise UnexpectedAnswerError(f"Infisical's answer lacks the field secret.secretValue while {doing}.")
        return Content(SecretStr(value), version if isinstance(version, int) else None)

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:  # noqa: ARG002 - see below
        """Create the secret, or change its value and nothing else.

        Args:
            value: The secret to store.
            content: The result of `read_content`.
            written_by: Not stored: Infisical's metadata and comments belong to the users, and a change replaces them.

        Raises:
            ConflictError: Someone else has created the secret since `content` was read.
            RejectedError: The project's change policy requires an approval.
            ServiceError: The secret cannot be written. The request is sent once: only the caller knows whether the
                write is still wanted.
        """
        body = {**self._where(), "type": "shared", "secretValue": value.get_secret_value()}
        doing = f"writing {self.place()}"
        if content.value is None:
            answer = await self._request("POST", doing, json_body=body, repeatable=False, attempts=1)
        else:
            answer = await self._request("PATCH", doing, json_body=body, attempts=1)
        if "approval" in answer:
            raise RejectedError(
                f"Infisical requires an approval while {doing}: reject that approval request, and allow this machine "
                "identity to write without approval."
            )
        if "secret" not in answer:
            raise UnexpectedAnswerError(f"Infisical's answer lacks the field secret while {doing}.")

    def _where(self) -> dict[str, str]:
        return {"workspaceId": self.project_id, "environment": self.environment, "secretPath": self.path}

    async def _request(self, method: str, doing: str, **how: Any) -> dict[str, Any]:
        path = f"api/v3/secrets/raw/{quote(self.name, safe='')}"
        return await self.credentials.get_client().request(method, path, doing=doing, **how)

    async def check(self) -> str:
        """Check that the machine identity can read the secret; only a write shows whether it may write.

        Returns:
            What works, in one sentence, and whether the secret exists yet.

        Raises:
            KeyRotationError: It does not work; the message says why.
        """
        content = await self.read_content()
        return f"{self.place()} can be read" + (", and does not exist yet." if content.value is None else ".")
