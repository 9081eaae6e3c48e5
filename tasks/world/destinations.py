"""Open a destination: a block of this package, or any other Prefect secret block behind the same interface."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.abstract import SecretBlock
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from blocks.destination import Content, Destination, DestinationBlock
from blocks.errors import ConfigurationError, DestinationError, KeyRotationError, ServiceError
from blocks.login import LoginBlock
from blocks.redaction import redacted
from blocks.threads import in_own_thread
from tasks.model.keys import fingerprint
from tasks.world.gate import sent_once
from tasks.world.stored_blocks import NONE_LOADED, load_block

CALL_TIMEOUT_SECONDS = 30.0
"""The timeout of a call to another package's block; Prefect's client and the cloud SDKs time out earlier."""
MAX_WRITES = 5
"""The maximum number of writes to a destination in one run, while nobody changes the key itself."""


_AWS_CODE = re.compile(r"[A-Za-z.]{1,60}")
_NEEDS_A_PERSON = frozenset(
    {
        *("AccessDenied", "AccessDeniedException", "UnrecognizedClientException", "InvalidClientTokenId"),
        *("InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "MissingAuthenticationToken"),
        *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "ResourceNotFoundException"),
        *("ValidationError", "ValidationException", "InvalidParameterException", "InvalidRequestException"),
        *("NoCredentialsError", "PartialCredentialsError"),
    }
)
"""Codes of AWS's errors, and types of botocore's own, that no repetition ends.

Source: the errors of `GetSecretValue` and `PutSecretValue` and the common errors in the API reference of AWS Secrets
Manager (https://docs.aws.amazon.com/secretsmanager/latest/apireference/CommonErrors.html), and `botocore.exceptions`.
"""


def holds(content: Content, key_fingerprint: str) -> bool:
    """Return whether a secret is the key with this fingerprint."""
    return fingerprint(content.value) == key_fingerprint


def hold_same_key(before: Content, after: Content) -> bool:
    """Return whether a changed secret still holds the same key, or still none: only another field was changed."""
    return fingerprint(before.value) == fingerprint(after.value)


class PrefectSecret(Destination):
    """A destination that is Prefect's own `Secret` block.

    It has one value and no versions, so there is no check-and-set: the ledger keeps two runs apart, each write is sent
    once, and a key that a late write could restore is not deleted.

    Args:
        name: The block's type slug and name.
        block: The loaded block.
    """

    in_prefect = True

    def __init__(self, name: str, block: Secret[Any]) -> None:
        self._name = name
        self._block_name = name.partition("/")[2]
        self._just_loaded: Secret[Any] | None = block
        self._document_id: UUID | None = block._block_document_id  # noqa: SLF001 - Prefect has no public accessor

    @property
    def is_read(self) -> bool:
        """Whether the loaded value was read, so that the next read must ask the server."""
        return self._just_loaded is None

    def loaded_again(self, block: Secret[Any]) -> None:
        """Take the present value of the block, for the next read."""
        self._just_loaded = block

    async def read_content(self) -> Content:
        """Read the present value of the block."""
        block, self._just_loaded = self._just_loaded, None
        if block is None:
            block = await _guarded(self._name, "read", lambda: Secret.aload(self._block_name))
        # `get()` would decode JSON: a key of digits would become a number.
        value = block.value.get_secret_value()
        if not isinstance(value, str):
            raise DestinationError(f"{self._name} holds a JSON value, which a key would replace: choose another block.")
        return Content(SecretStr(value))

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:  # noqa: ARG002 - no such thing here
        """Store a key in the block."""
        if self._document_id is None:
            raise ConfigurationError(f"{self._name} is not a stored block.")
        update = BlockDocumentUpdate(data={"value": value.get_secret_value()}, merge_existing_data=False)
        try:
            async with sent_once(f"writing {self._name}") as client:
                await client.update_block_document(self._document_id, update)
        except ObjectNotFound:
            raise ConfigurationError(f"{self._name} was deleted; nothing was written.") from None

    def place(self) -> str:
        """Return the place, which is the block itself."""
        return self._name


class AnySecretBlock(Destination):
    """A destination that is another Prefect `SecretBlock`, such as those of prefect-aws and prefect-gcp.

    Args:
        name: The block's type slug and name.
        block: The block.
    """

    # A call in a thread continues after its timeout, with retries of its own.
    late_writes = timedelta(minutes=15)

    def __init__(self, name: str, block: SecretBlock) -> None:
        self._name = name
        self._block = block

    async def read_content(self) -> Content:
        """Read the present content."""
        data = await self._call("read_secret", "read")
        try:
            text = data.decode() if isinstance(data, bytes) else data
        except UnicodeDecodeError:
            text = data
        if not isinstance(text, str | None):
            raise DestinationError(f"{self._name} holds no text, which a key would replace: choose another block.")
        return Content(None if text is None else SecretStr(text))

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:  # noqa: ARG002 - no such thing here
        """Store a key."""
        await self._call("write_secret", "written", value.get_secret_value().encode())

    def place(self) -> str:
        """Return the place: the block, and the secret's name if the block has a `secret_name`.

        The blocks of prefect-aws and prefect-gcp have one; for others it is unknown where they store the secret.
        """
        secret_name = getattr(self._block, "secret_name", None)
        named = isinstance(secret_name, str) and secret_name and redacted(secret_name) == secret_name
        return f"{secret_name} of {self._name}" if named else self._name

    async def _call(self, method: str, what: str, *args: Any) -> Any:
        # Some of these blocks are sync or async depending on the context, and have an explicit async twin.
        call = getattr(self._block, f"a{method}", None) or getattr(self._block, method)

        async def run() -> Any:
            # A sync call would block the event loop, including the renewal of the slot's lease. Methods that Prefect
            # makes usable in both ways have the attribute `aio`.
            if not inspect.iscoroutinefunction(call) and not hasattr(call, "aio"):
                return await in_own_thread(call, *args)
            answer = call(*args)
            return await answer if inspect.isawaitable(answer) else answer

        return await _guarded(self._name, what, run)


async def _guarded(name: str, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
    # A foreign error's text may quote the secret, so only its class and AWS's code are reported.
    try:
        async with asyncio.timeout(CALL_TIMEOUT_SECONDS):
            return await call()
    except KeyRotationError:
        raise
    except Exception as error:  # noqa: BLE001 - a foreign block may raise anything
        causes = list(dict.fromkeys(filter(None, [type(error).__name__, _aws_code(error)])))
        raise ServiceError(
            f"{name} could not be {what} ({': '.join(causes)}).",
            outcome_unknown=True,
            retryable=_NEEDS_A_PERSON.isdisjoint(causes),
        ) from None


def _aws_code(error: Exception) -> str:
    """Return the code in an error of botocore, which need not be installed; empty for any other error."""
    response = vars(error).get("response")
    details = response.get("Error") if isinstance(response, Mapping) else None
    code = details.get("Code") if isinstance(details, Mapping) else None
    return code if isinstance(code, str) and _AWS_CODE.fullmatch(code) else ""


async def open_destination(
    name: str,
    field: str = "rotation.destinations",
    logins: dict[UUID, LoginBlock] | None = None,
    loaded: Mapping[str, Block] = NONE_LOADED,
) -> Destination:
    """Open a destination by name.

    Args:
        name: The block's type slug and name, as in `vault-secret/checkout`.
        field: The field that names it, for the error message.
        logins: The open credentials blocks by document id, so that destinations with the same one share its connection;
            new ones are added.
        loaded: Blocks that are loaded already.

    Returns:
        The destination, which the caller closes.

    Raises:
        ConfigurationError: The block does not exist, cannot be loaded here, or is no secret block.
    """
    block = await load_block(name, field, loaded)
    if isinstance(block, DestinationBlock):
        _share_login(block, {} if logins is None else logins)
        return block
    if isinstance(block, Secret):
        return PrefectSecret(name, block)
    if isinstance(block, SecretBlock):
        return AnySecretBlock(name, block)
    raise ConfigurationError(f"{field}: {name} is not a secret block. Nothing was created.")


def _share_login(block: DestinationBlock, logins: dict[UUID, LoginBlock]) -> None:
    document_id = block.credentials._block_document_id  # noqa: SLF001 - Prefect has no public accessor
    if document_id is not None:
        block.credentials = logins.setdefault(document_id, block.credentials)
