"""Destinations: any block that can be read and written, behind one small interface."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from uuid import UUID

from prefect.blocks.abstract import SecretBlock
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.client.utilities import get_or_create_client
from pydantic import SecretStr

from blocks.errors import ConfigurationError, DestinationError, KeyRotationError, ServiceError
from blocks.secrets import DestinationBlock, Held
from tasks.ledger import fingerprint

CONNECTION_TYPE = "openrouter-credentials"
"""The block type slug of a connection."""
CALL_TIMEOUT_SECONDS = 120.0
"""The longest that a block of another package may take; Prefect's client and the clouds' own give up before that."""


class Destination(Protocol):
    """A place where consumers read the current key; one without versions, unless it says otherwise."""

    name: str
    """The block's type slug and name, as in `vault-secret/checkout`."""

    async def read(self) -> Held:
        """Read what the place holds now."""

    async def write(self, value: SecretStr, held: Held, written_by: Mapping[str, str]) -> None:
        """Store a key in place of what was read."""

    async def fence(self, held: Held) -> None:  # noqa: ARG002 - no versions
        """Make sure that a write prepared before this moment fails, where the place can do so."""
        return

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:  # noqa: ARG002 - no versions
        """Find an older version of the secret, where the place keeps such."""
        return None

    async def check(self) -> str:
        """Prove without writing that the place works; one sentence says what does."""
        await self.read()
        # Only a write would tell whether it can be written.
        return f"{self.name} can be read."

    def place(self) -> str:
        """Name the place itself; two blocks may mean the same one, where they can say so."""
        return self.name

    async def aclose(self) -> None:
        """Close its connections, where it has some of its own."""
        return


def changed_only_beside(before: Held, after: Held) -> bool:
    """Say whether a place, which has changed, still holds the same key: another field beside it was written.

    Args:
        before: What was read first.
        after: What was read later.

    Returns:
        Whether the key is the same in both, or absent in both.
    """
    return fingerprint(before.value) == fingerprint(after.value)


class OwnBlock(Destination):
    """A destination that is one of this project's blocks.

    Args:
        name: The block's type slug and name.
        block: The block.
    """

    def __init__(self, name: str, block: DestinationBlock) -> None:
        self.name = name
        self._block = block

    async def read(self) -> Held:
        """Read what the place holds now."""
        return await self._block.read_held()

    async def write(self, value: SecretStr, held: Held, written_by: Mapping[str, str]) -> None:
        """Store a key in place of what was read."""
        await self._block.write_held(value, held, written_by)

    async def fence(self, held: Held) -> None:
        """Make sure that a write prepared before this moment fails, where the place can do so."""
        await self._block.fence(held)

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:
        """Find an older version of the secret, where the place keeps such."""
        return await self._block.read_older(is_wanted)

    async def check(self) -> str:
        """Prove without writing that the place works; one sentence says what does."""
        return await self._block.check()

    def place(self) -> str:
        """Name the place itself; two blocks may mean the same one."""
        return self._block.place()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._block.aclose()


class PrefectSecret(Destination):
    """A destination that is Prefect's own `Secret` block.

    Prefect keeps one value and no version, so there is no check-and-set: the rotation's concurrency slot and the ledger
    are what keeps two runs apart.

    Args:
        name: The block's type slug and name.
        block: The block as it was loaded.
    """

    def __init__(self, name: str, block: Secret[Any]) -> None:
        self.name = name
        self._block_name = name.partition("/")[2]
        self._just_loaded: Secret[Any] | None = block
        self._document_id: UUID | None = block._block_document_id  # noqa: SLF001 - Prefect offers no other way to it

    async def read(self) -> Held:
        """Read what the block holds now."""
        block, self._just_loaded = self._just_loaded, None
        if block is None:
            block = await _guarded(self.name, "read", lambda: Secret.aload(self._block_name))
        # `get()` would decode JSON: a key of digits would come back as a number.
        value = block.value.get_secret_value()
        if not isinstance(value, str):
            raise DestinationError(f"{self.name} holds a JSON value, which a key would replace: choose another block.")
        return Held(SecretStr(value))

    async def write(self, value: SecretStr, held: Held, written_by: Mapping[str, str]) -> None:  # noqa: ARG002 - no such thing here
        """Store a key in the block."""
        client, _ = get_or_create_client()
        if self._document_id is None:
            raise ConfigurationError(f"{self.name} is not a stored block.")
        update = BlockDocumentUpdate(data={"value": value.get_secret_value()}, merge_existing_data=False)
        document_id = self._document_id
        await _guarded(self.name, "written", lambda: client.update_block_document(document_id, update))


class AnySecretBlock(Destination):
    """A destination that is some other Prefect `SecretBlock`, such as those of prefect-aws and prefect-gcp.

    Args:
        name: The block's type slug and name.
        block: The block.
    """

    def __init__(self, name: str, block: SecretBlock) -> None:
        self.name = name
        self._block = block

    async def read(self) -> Held:
        """Read what the place holds now."""
        data = await self._call("read_secret", "read")
        try:
            text = data.decode() if isinstance(data, bytes) else data
        except UnicodeDecodeError:
            text = data
        if not isinstance(text, str | None):
            raise DestinationError(f"{self.name} holds no text, which a key would replace: choose another block.")
        return Held(None if text is None else SecretStr(text))

    async def write(self, value: SecretStr, held: Held, written_by: Mapping[str, str]) -> None:  # noqa: ARG002 - no such thing here
        """Store a key."""
        await self._call("write_secret", "written", value.get_secret_value().encode())

    async def _call(self, method: str, what: str, *args: Any) -> Any:
        # Some of these blocks answer sync or async by context and have an explicit async twin.
        call = getattr(self._block, f"a{method}", None) or getattr(self._block, method)

        async def run() -> Any:
            # One that knows only sync code would stop everything else, the slot's renewal included. What Prefect makes
            # usable in both says so by `aio`.
            if not inspect.iscoroutinefunction(call) and not hasattr(call, "aio"):
                return await asyncio.to_thread(call, *args)
            answer = call(*args)
            return await answer if inspect.isawaitable(answer) else answer

        return await _guarded(self.name, what, run)


async def _guarded(name: str, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
    # A foreign library's text may quote what it was given, so only its class is told.
    try:
        async with asyncio.timeout(CALL_TIMEOUT_SECONDS):
            return await call()
    except KeyRotationError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a foreign block raises
        raise ServiceError(
            f"{name} could not be {what} ({type(error).__name__}).", outcome_unknown=True, retryable=True
        ) from None


async def open_destination(
    name: str, field: str = "rotation.destinations", logins: dict[UUID, Block] | None = None
) -> Destination:
    """Load a destination by name.

    Args:
        name: The block's type slug and name, as in `vault-secret/checkout`.
        field: The field that names it, for the message.
        logins: The credentials blocks that are in use by document id, so that destinations with the same one share its
            connection; what is opened is added.

    Returns:
        The destination; whoever opened it closes it.

    Raises:
        ConfigurationError: There is no such block, it cannot be loaded here, or it is no secret.
    """
    block = await load_block(name, field)
    if isinstance(block, DestinationBlock):
        _share_login(block, {} if logins is None else logins)
    return as_destination(name, block, field)


def as_destination(name: str, block: Block, field: str) -> Destination:
    """Use a loaded block as a destination.

    Args:
        name: The block's type slug and name.
        block: The block.
        field: The field that names it, for the message.

    Returns:
        The destination; closing it closes what the block has opened.

    Raises:
        ConfigurationError: The block is no secret.
    """
    if isinstance(block, DestinationBlock):
        return OwnBlock(name, block)
    if isinstance(block, Secret):
        return PrefectSecret(name, block)
    if isinstance(block, SecretBlock):
        return AnySecretBlock(name, block)
    raise ConfigurationError(f"{field}: {name} is not a secret block. Nothing was created.")


def _share_login(block: DestinationBlock, logins: dict[UUID, Block]) -> None:
    credentials = getattr(block, "credentials", None)
    document_id = getattr(credentials, "_block_document_id", None)
    if isinstance(credentials, Block) and document_id is not None:
        block.credentials = logins.setdefault(document_id, credentials)  # type: ignore[attr-defined] # it is there


async def load_block(name: str, field: str) -> Block:
    """Load a block by its type slug and name.

    Args:
        name: The block's type slug and name.
        field: The field that names it, for the message.

    Returns:
        The block, freshly loaded.

    Raises:
        ConfigurationError: There is no such block, or it cannot be loaded here.
        ServiceError: Prefect's API failed.
    """
    try:
        return await Block.aload(name)
    except ValueError as error:
        # Prefect raises ValueError for "not found", and pydantic's ValidationError, which is one, for a damaged block.
        why = "does not exist" if "Unable to find" in str(error) else "is not valid: open it in the dashboard"
        raise ConfigurationError(f"{field}: the block {name} {why}. Nothing was created.") from None
    except Exception as error:  # noqa: BLE001 - its text may quote the block
        kind = type(error).__name__
        if kind == "UnknownBlockType":
            raise ConfigurationError(
                f"{field}: the package that provides the block type of {name} is not installed here."
            ) from None
        raise ServiceError(f"Prefect could not load the block {name} ({kind}).", retryable=True) from None
