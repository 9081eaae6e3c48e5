"""A destination: one field of a KV version 2 secret in HashiCorp Vault.

Source of paths, fields and limits: Vault's API reference, "KV secrets engine version 2" and its auth methods
(https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, ClassVar

import hvac
from hvac.exceptions import InvalidPath
from hvac.utils import format_url
from pydantic import AfterValidator, ConfigDict, Field, HttpUrl, Secret, SecretStr, ValidationError, field_validator

from blocks.destination import Content, DestinationBlock
from blocks.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RejectedError,
    ServiceError,
    UnexpectedAnswerError,
)
from blocks.vault.answers import Mounted, VersionContent, Versions, Written
from blocks.vault.credentials import VaultCredentials
from blocks.vault.paths import Mount, valid_path

MAX_FIELD_CHARACTERS = 256
MAX_LABEL_KEY_BYTES = 128
MAX_LABEL_VALUE_BYTES = 512
"""Vault's limits for `custom_metadata`; it rejects a write that exceeds one as a whole."""
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}


@dataclass(frozen=True, eq=False)
class VaultContent(Content):
    """The content of a secret's field, and of the other fields, which a write keeps.

    Args:
        value: The field's value.
        version: The secret's current version; 0 if there is none.
        fields: All fields of that version.
    """

    fields: Secret[dict[str, Any]] = field(default_factory=lambda: Secret[dict[str, Any]]({}), repr=False)


class VaultSecret(DestinationBlock):
    """One field of a secret in Vault's KV version 2 engine.

    Attributes:
        credentials: The login.
        mount: The engine's mount path.
        path: The secret's path below the mount.
        field: The field that holds the key; the secret's other fields are kept.

    Example:
        Read the secret in any flow:

        ```python
        from blocks import VaultSecret

        secret = VaultSecret.load("BLOCK_NAME")
        value = secret.read_secret()
        ```

        In async code, load it with `await VaultSecret.aload("BLOCK_NAME")` and read it with
        `await secret.aread_secret()`.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    late_writes: ClassVar[timedelta] = timedelta(0)

    _block_type_name: ClassVar[str] = "Vault Secret"
    _block_type_slug: ClassVar[str] = "vault-secret"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/hashicorp.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl("https://developer.hashicorp.com/vault/docs/secrets/kv/kv-v2")
    _description: ClassVar[str] = (
        "One field of a secret in HashiCorp Vault's KV version 2 engine."
        " To try a saved one, run check-connections with its name."
    )

    credentials: VaultCredentials = Field(title="Credentials", description="The login to Vault.")
    mount: Mount = Field(default="secret", title="Mount", description="The mount path of the KV version 2 engine.")
    path: Annotated[str, AfterValidator(lambda value: valid_path(value, "path"))] = Field(
        title="Path", description="The secret's path below the mount, such as team/app."
    )
    field: str = Field(
        default="value", title="Field", description="The field that holds the key; the secret's other fields are kept."
    )

    @field_validator("field")
    @classmethod
    def _field_name(cls, value: str) -> str:
        text = value.strip()
        if not text or not text.isprintable() or len(text) > MAX_FIELD_CHARACTERS:
            raise ValueError(
                f"field must be a name without control characters, at most {MAX_FIELD_CHARACTERS} characters long."
            )
        return text

    async def read_content(self) -> VaultContent:
        """Read the field, the other fields and the secret's version.

        Returns:
            The content; a version without a value if the field is absent or the latest version was deleted.

        Raises:
            NotFoundError: The mount has no KV version 2 engine.
            ServiceError: The secret cannot be read.
        """
        content = await self._read_version(None)
        if content is None:
            await self._require_version_2()
            return VaultContent(None, 0)
        fields = content.data or {}
        return VaultContent(self._value(fields), content.metadata.version, Secret[dict[str, Any]](fields))

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:
        """Store a secret in the field, keep the other fields, and label the path with its writer.

        Args:
            value: The secret to store.
            content: The result of `read_content`; the write is refused if the secret has changed since.
            written_by: Labels to add to the path's custom metadata.

        Raises:
            ConflictError: Someone else has written since `content` was read.
            ServiceError: The secret cannot be written.
        """
        current = await self._with_fields(content)
        fields = current.fields.get_secret_value() | {self.field: value.get_secret_value()}
        written = await self._put(fields, current)
        if not written_by:
            return
        try:
            await self._label(written, _within_limits(written_by))
        except ServiceError as error:
            # The secret is stored: a failure of the labels must not look like a failed write.
            self.logger.warning("The secret was written, but its labels were not: %s", error)

    async def fence(self, content: Content) -> Content:
        """Write the same fields again, so that every write prepared earlier fails.

        Args:
            content: The result of `read_content`.

        Returns:
            The same content, one version later.

        Raises:
            ConflictError: Someone else has written since `content` was read.
            ServiceError: The secret cannot be written.
        """
        current = await self._with_fields(content)
        written = await self._put(current.fields.get_secret_value(), current)
        return VaultContent(current.value, written.version, current.fields)

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:
        """Search the field's older versions for a secret, from the newest to the oldest.

        Args:
            is_wanted: Returns whether a secret matches.

        Returns:
            The first match, or `None`. Deleted and destroyed versions are skipped.

        Raises:
            ForbiddenError: The login may not read the metadata, which lists the versions.
            ServiceError: A version cannot be read.
        """
        for version in await self._older_versions():
            content = await self._read_version(version)
            value = self._value(content.data or {}) if content is not None else None
            if value is not None and is_wanted(value):
                return value
        return None

    async def check(self) -> str:
        """Check, without writing, that the field can be read and written.

        Returns:
            What works, in one sentence.

        Raises:
            KeyRotationError: It does not work; the message says why.
        """
        content = await self.read_content()
        granted = await self._granted()
        if granted is None:
            return f"{self.place()} can be read; whether it can be written is unknown without sys/capabilities-self."
        missing = [name for name in (["update"] if content.version else ["create", "update"]) if name not in granted]
        if missing and "root" not in granted:
            host = self.credentials.connection().host
            raise ForbiddenError(
                f"Vault at {host} does not grant {', '.join(missing)} on {self._data_path()} to this login."
            )
        return f"{self.place()} can be read and written."

    def place(self) -> str:
        """Return the name of the place for messages.

        Returns:
            Mount, path, field, Vault's URL, and the namespace if there is one.
        """
        within = f" in the namespace {self.credentials.namespace}" if self.credentials.namespace else ""
        return f"{self.mount}/{self.path}#{self.field}{within} in Vault at {self.credentials.url}"

    def _data_path(self) -> str:
        return f"{self.mount}/data/{self.path}"

    async def _granted(self) -> set[str] | None:
        at = self._data_path()
        doing = f"asking what is allowed at {at}"
        try:
            answer = await self.credentials.connection().call(
                doing, lambda client: client.sys.get_capabilities([at]), examine=False
            )
        except ForbiddenError:
            return None
        granted = answer.get("capabilities")
        if not isinstance(granted, list):
            raise UnexpectedAnswerError(f"Vault's answer is not as documented while {doing}.")
        return set(map(str, granted))

    async def _read_version(self, version: int | None) -> VersionContent | None:
        answer = await self._call(
            "reading",
            lambda client: _unless_absent(
                lambda: client.secrets.kv.v2.read_secret_version(
                    self.path, version, mount_point=self.mount, raise_on_deleted_version=True
                )
            ),
        )
        if answer.get("errors") == []:
            return None
        if not isinstance(answer.get("data"), dict):
            raise UnexpectedAnswerError(f"Vault's answer is not as documented while reading {self.place()}.")
        try:
            return VersionContent.model_validate(answer["data"])
        except ValidationError:
            raise self._no_engine() from None

    async def _older_versions(self) -> list[int]:
        doing = "reading the versions of"
        answer = await self._call(
            doing,
            lambda client: _unless_absent(
                lambda: client.secrets.kv.v2.read_secret_metadata(self.path, mount_point=self.mount)
            ),
        )
        if answer.get("errors") == []:
            return []
        try:
            found = Versions.model_validate(answer.get("data"))
        except ValidationError:
            raise UnexpectedAnswerError(f"Vault's answer is not as documented while {doing} {self.place()}.") from None
        # Only a read shows whether a version is deleted: its deletion time may be in the future, and clocks differ.
        existing = (number for number, version in found.versions.items() if not version.destroyed)
        return sorted((number for number in existing if number < found.current_version), reverse=True)

    def _value(self, fields: Mapping[str, Any]) -> SecretStr | None:
        value = fields.get(self.field)
        if value is None:
            return None
        return SecretStr(value if isinstance(value, str) else json.dumps(value, default=str))

    async def _with_fields(self, content: Content) -> VaultContent:
        if isinstance(content, VaultContent):
            return content
        current = await self.read_content()
        if content.version not in (None, current.version):
            raise ConflictError(f"Somebody else has written to {self.place()}.")
        return current

    async def _put(self, fields: dict[str, Any], content: VaultContent) -> Written:
        answer = await self._call(
            "writing",
            lambda client: client.secrets.kv.v2.create_or_update_secret(
                self.path, fields, cas=content.version, mount_point=self.mount
            ),
            repeatable=False,
            attempts=1,
        )
        try:
            return Written.model_validate(answer.get("data"))
        except ValidationError:
            raise UnexpectedAnswerError(
                f"Vault's answer is not as documented for KV version 2 after writing {self.place()}."
            ) from None

    async def _label(self, written: Written, labels: dict[str, str]) -> None:
        try:
            await self._send_labels("patch", labels, MERGE_PATCH)
        except (ForbiddenError, RejectedError):
            # A policy may allow update but not patch, and old versions of Vault do not support PATCH.
            await self._send_labels("post", {**(written.custom_metadata or {}), **labels}, {})

    async def _send_labels(self, method: str, labels: dict[str, Any], headers: dict[str, str]) -> None:
        url = format_url("/v1/{mount}/metadata/{path}", mount=self.mount, path=self.path)
        await self.credentials.connection().call(
            f"writing the custom metadata of {self.mount}/{self.path}",
            # Not hvac's update_metadata, which also sets delete_version_after.
            lambda client: client.adapter.request(method, url, headers=dict(headers), json={"custom_metadata": labels}),
            examine=False,
        )

    async def _require_version_2(self) -> None:
        # A KV version 1 engine sends the same response for an absent secret, and would store the write's envelope.
        url = format_url("/v1/sys/internal/ui/mounts/{mount}", mount=self.mount)
        try:
            answer = await self._call(
                "looking for the engine of", lambda client: client.adapter.get(url), examine=False
            )
        except (ForbiddenError, NotFoundError, RejectedError):
            return
        try:
            mounted = Mounted.model_validate(answer.get("data"))
        except ValidationError:
            raise self._no_engine() from None
        if (mounted.path, mounted.type, (mounted.options or {}).get("version")) != (f"{self.mount}/", "kv", "2"):
            raise self._no_engine()

    def _no_engine(self) -> NotFoundError:
        host = self.credentials.connection().host
        return NotFoundError(f"Vault at {host} has no KV version 2 engine at the mount {self.mount}.")

    async def _call(self, verb: str, request: Callable[[hvac.Client], Any], **how: Any) -> dict[str, Any]:
        try:
            return await self.credentials.connection().call(f"{verb} {self.mount}/{self.path}", request, **how)
        except NotFoundError:
            raise self._no_engine() from None


def _unless_absent(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InvalidPath as error:
        # 404 with an empty list of errors: absent; 404 with metadata: deleted; 404 with an error text: no engine.
        body = error.json if isinstance(error.json, dict) else {}
        if body.get("errors") == [] or isinstance(body.get("data"), dict):
            return body
        raise


def _within_limits(labels: Mapping[str, str]) -> dict[str, str]:
    cut = {_cut(key, MAX_LABEL_KEY_BYTES): _cut(value, MAX_LABEL_VALUE_BYTES) for key, value in labels.items()}
    return {key: value for key, value in cut.items() if key and value}


def _cut(text: str, limit: int) -> str:
    printable = "".join(character for character in text if character.isprintable())
    return printable.encode(errors="ignore")[:limit].decode(errors="ignore")
