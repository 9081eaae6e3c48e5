"""Vault's auth methods, one class each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hvac
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from blocks.errors import ConfigurationError
from blocks.vault.paths import Mount

SERVICE_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path, not a token
FOLDERS_SETTING = "KEY_ROTATION_TOKEN_FOLDERS"
"""The worker's environment variable with the folders, separated by colons, from which a login may send files."""


def token_folders() -> list[str]:
    """Return the folders from which a login may send files to Vault; set by this machine, never by a block."""
    return [name for name in os.environ.get(FOLDERS_SETTING, SERVICE_ACCOUNT_FOLDER).split(":") if name.startswith("/")]


def _header_safe(value: SecretStr, name: str) -> SecretStr:
    text = value.get_secret_value().strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"{name} must be plain text without spaces or line breaks.")
    return SecretStr(text)


def _one_line(schema: dict[str, Any]) -> None:
    # The form shows the description verbatim, which would be the whole docstring.
    schema["description"] = schema["description"].partition("\n")[0]


class _Auth(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, json_schema_extra=_one_line)

    @property
    def where(self) -> str | None:
        """The auth method's path; `None` for a token, which cannot log in again."""
        mount = getattr(self, "mount", None)
        return f"auth/{mount}" if mount else None


class TokenAuth(_Auth):
    """A given token, which is never renewed.

    Attributes:
        token: The token.
    """

    model_config = ConfigDict(title="Token")

    token: SecretStr = Field(
        title="Token", description="A Vault token. It is not renewed: replace it before it expires."
    )

    @field_validator("token")
    @classmethod
    def _plain(cls, value: SecretStr) -> SecretStr:
        return _header_safe(value, "token")

    def log_in(self, client: hvac.Client) -> dict[str, Any]:
        """Set the client's token."""
        client.token = self.token.get_secret_value()
        return {}


class AppRoleAuth(_Auth):
    """A login with an AppRole.

    Attributes:
        role_id: The role's id.
        secret_id: A secret id of the role.
        mount: The auth method's mount path.
    """

    model_config = ConfigDict(title="AppRole")

    role_id: str = Field(title="Role ID", min_length=1, description="The role's id.")
    secret_id: SecretStr = Field(title="Secret ID", min_length=1, description="A secret id of the role.")
    mount: Mount = Field(default="approle", title="Mount", description="The mount path of AppRole, below auth/.")

    def log_in(self, client: hvac.Client) -> Any:
        """Log the client in."""
        return client.auth.approle.login(self.role_id, self.secret_id.get_secret_value(), mount_point=self.mount)


class KubernetesAuth(_Auth):
    """A login with the service account of the pod that the flow runs in.

    Attributes:
        kubernetes_role: The role in Vault.
        mount: The auth method's mount path.
        token_path: The file in which Kubernetes stores the service account's token.
    """

    model_config = ConfigDict(title="Kubernetes")

    kubernetes_role: str = Field(title="Role", min_length=1, description="The role of Vault's Kubernetes auth method.")
    mount: Mount = Field(
        default="kubernetes", title="Mount", description="The mount path of the Kubernetes auth method, below auth/."
    )
    token_path: str = Field(
        default=SERVICE_ACCOUNT_TOKEN,
        title="Token path",
        description=(
            "The file with the service account's token, on the machine that runs the flow. Its folder must be "
            "/var/run/secrets/kubernetes.io/serviceaccount, or be named in the worker's KEY_ROTATION_TOKEN_FOLDERS."
        ),
    )

    def log_in(self, client: hvac.Client) -> Any:
        """Log the client in with the current content of the token file, which Kubernetes replaces every hour.

        Raises:
            ConfigurationError: The file is outside of the folders that this machine allows, or cannot be read.
        """
        return client.auth.kubernetes.login(self.kubernetes_role, self._token(), mount_point=self.mount)

    def _token(self) -> str:
        # Otherwise, whoever can edit a block could have any file of this machine sent to a host of their choice.
        # Kubernetes mounts the token as a symlink within its folder, so both paths are resolved before the comparison.
        folders = token_folders()
        try:
            file = Path(self.token_path).resolve()
            if not any(file.is_relative_to(Path(folder).resolve()) for folder in folders):
                raise ConfigurationError(
                    f"auth.token_path: the file is not in {' or '.join(folders) or 'any folder'}, so it was not sent "
                    f"to Vault; if it is a token, name its folder in {FOLDERS_SETTING} in the worker's environment."
                )
            return file.read_text().strip()
        except (OSError, ValueError, RuntimeError):
            raise ConfigurationError(
                "auth.token_path: the file with the service account's token cannot be read on the machine of this run."
            ) from None


class JwtAuth(_Auth):
    """A login with a JSON Web Token.

    Attributes:
        jwt_role: The role in Vault.
        jwt: The signed token.
        mount: The auth method's mount path.
    """

    model_config = ConfigDict(title="JWT")

    jwt_role: str = Field(title="Role", min_length=1, description="The role of Vault's JWT auth method.")
    jwt: SecretStr = Field(title="JWT", min_length=1, description="The signed token.")
    mount: Mount = Field(
        default="jwt", title="Mount", description="The mount path of the JWT auth method, below auth/."
    )

    def log_in(self, client: hvac.Client) -> Any:
        """Log the client in."""
        return client.auth.jwt.jwt_login(self.jwt_role, self.jwt.get_secret_value(), path=self.mount)
