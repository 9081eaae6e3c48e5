"""OpenRouter's key management: the connection block and the client behind it.

Source of every path, field and status: OpenRouter's API reference, "API Keys", "Guardrails" and "Workspaces"
(https://openrouter.ai/docs/api-reference/api-keys/list).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from prefect.blocks.abstract import CredentialsBlock
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    field_validator,
)

from blocks.errors import (
    ConfigurationError,
    ForbiddenError,
    KeyRotationError,
    NotFoundError,
    RejectedError,
    UnauthorizedError,
    UnexpectedAnswerError,
)
from blocks.http import JsonHttp, Meaning
from blocks.redaction import redacted
from blocks.urls import safe_base_url

OPENROUTER_URL = "https://openrouter.ai/api/v1"
PAGE_SIZE = 100
"""How many records one answer of a list holds at most; for keys it cannot be asked for."""
MAX_PAGES = 1_000
"""Where a list that never ends is given up: 100,000 records."""
PAYMENT_REQUIRED = 402
MAX_IDENTIFIER = 200
"""The longest hash or label that is believed; OpenRouter's hashes have 64 characters."""

LimitReset = Literal["daily", "weekly", "monthly"]
M = TypeVar("M", bound=BaseModel)


def _meaning(status: int, answer: Mapping[str, Any]) -> Meaning | None:
    error = answer.get("error")
    if status not in _NEEDS_PROOF or (isinstance(error, dict) and error.get("code") == status):
        return None
    return UnexpectedAnswerError, f"or something before it answered {status}, and not as OpenRouter does,"


def _identifier(value: str) -> str:
    # It is kept in the ledger and shown to people, and a hash becomes part of a path.
    crooked = value in {".", ".."} or not value.isprintable() or set("/\\") & set(value)
    if crooked or len(value) > MAX_IDENTIFIER or redacted(value) != value:
        raise ValueError("not an identifier")
    return value


def _in_utc(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


_NEEDS_PROOF = frozenset({402, 403, 404})
"""Statuses that say something about a key: it is gone, or it is good and may not spend. Proxies answer them, too."""
Identifier = Annotated[str, Field(min_length=1), AfterValidator(_identifier)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]
"""A moment as OpenRouter tells it, which is UTC even where it does not say so."""
WholeSecond = Annotated[AwareDatetime, AfterValidator(lambda value: value.astimezone(UTC).replace(microsecond=0))]
"""A moment as OpenRouter takes it: UTC, and no fraction."""


class _Answer(BaseModel):
    """Part of an answer: unknown fields are tolerated, missing ones are an error."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        # Whoever names a key may have pasted a key there.
        return ()


class ApiKey(_Answer):
    """A key as the management API shows it, without its plaintext. Amounts are US dollars, periods those of UTC."""

    hash: Identifier
    name: str
    label: Identifier
    disabled: bool
    limit: Decimal | None
    limit_remaining: Decimal | None = None
    limit_reset: str | None
    include_byok_in_limit: bool
    usage: Decimal
    usage_daily: Decimal = Decimal(0)
    usage_weekly: Decimal = Decimal(0)
    usage_monthly: Decimal = Decimal(0)
    byok_usage: Decimal = Decimal(0)
    byok_usage_daily: Decimal = Decimal(0)
    byok_usage_weekly: Decimal = Decimal(0)
    byok_usage_monthly: Decimal = Decimal(0)
    created_at: Moment
    creator_user_id: str | None = None
    expires_at: Moment | None = None
    last_used_at: Moment | None = None
    workspace_id: Identifier | None = None

    def spent(self, reset: str | None) -> Decimal:
        """Sum up what counts towards a limit since it was last reset.

        Args:
            reset: How often the limit is reset: `daily`, `weekly` or `monthly`; `None` for never.

        Returns:
            The usage in US dollars of the current day, week or month, or of the key's whole life where the limit is
            never reset; with the usage of the account's own provider keys (BYOK) where the limit includes it.
        """
        usage, byok_usage = {
            "daily": (self.usage_daily, self.byok_usage_daily),
            "weekly": (self.usage_weekly, self.byok_usage_weekly),
            "monthly": (self.usage_monthly, self.byok_usage_monthly),
        }.get(reset or "", (self.usage, self.byok_usage))
        return usage + byok_usage if self.include_byok_in_limit else usage


class CurrentKey(_Answer):
    """A key's own view of itself (`GET /key`)."""

    label: str
    limit: Decimal | None = None
    expires_at: Moment | None = None
    is_management_key: bool | None = None
    is_provisioning_key: bool | None = None

    @property
    def manages_keys(self) -> bool:
        """Whether this is a management key; older answers call it a provisioning key."""
        return bool(self.is_management_key or self.is_provisioning_key)


class _Workspace(_Answer):
    id: Identifier


class _Assignment(_Answer):
    key_hash: Identifier
    guardrail_id: Identifier


class _Assigned(_Answer):
    assigned_count: int = Field(strict=True)


class _Unassigned(_Answer):
    unassigned_count: int = Field(strict=True, ge=0, le=1)


class _Page(_Answer):
    data: list[Any]
    total_count: int = Field(strict=True, ge=0)


class KeyRequest(BaseModel):
    """What is asked for when a key is created."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    limit: Decimal | None = None
    limit_reset: LimitReset | None = None
    include_byok_in_limit: bool = False
    workspace_id: str | None = None
    creator_user_id: str | None = Field(default=None, min_length=1)
    expires_at: WholeSecond | None = None

    def body(self) -> dict[str, Any]:
        """Spell the request as the API wants it.

        Returns:
            The JSON object; what was left open is left out, so that OpenRouter's own default applies.
        """
        always: dict[str, Any] = {
            "name": self.name,
            "limit": self.limit,
            "limit_reset": self.limit_reset,
            "include_byok_in_limit": self.include_byok_in_limit,
        }
        where_given = {
            "workspace_id": self.workspace_id,
            "creator_user_id": self.creator_user_id,
            # OpenRouter refuses other time zones, and a moment without seconds.
            "expires_at": self.expires_at and f"{self.expires_at:%Y-%m-%dT%H:%M:%SZ}",
        }
        return always | {name: value for name, value in where_given.items() if value is not None}


@dataclass(frozen=True)
class CreatedKey:
    """A key that was just created: the only moment at which its plaintext is known.

    Args:
        secret: The plaintext.
        key: What the management API shows of it.
    """

    secret: SecretStr
    key: ApiKey


class OpenRouterClient:
    """OpenRouter's key management over one HTTP connection.

    Args:
        management_key: The key that may manage keys.
        base_url: Where the API is.
        connection: The name of the connection, for messages; empty where there is only one.
        transport: A transport for tests; real sockets without it.
        sleep: How to wait between attempts, in seconds.
    """

    def __init__(
        self,
        management_key: SecretStr,
        base_url: str,
        *,
        connection: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._management_key = management_key
        service = f"OpenRouter (connection {connection})" if connection else "OpenRouter"
        self._http = JsonHttp(service, base_url, transport=transport, sleep=sleep, explain=_meaning)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._http.__aexit__(None, None, None)

    async def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create a key; the call is made again only where the one before has certainly made none.

        Args:
            request: The key's name and settings.

        Returns:
            The key with its plaintext.

        Raises:
            ServiceError: The call failed; `outcome_unknown` says whether a key may have been made all the same.
        """
        doing = "creating a key"
        answer = await self._manage("POST", "keys", doing, json_body=request.body(), repeatable=False)
        data = answer.get("data")
        # The API description shows the plaintext beside `data`, OpenRouter's own cookbook inside it.
        secret = answer.get("key") or (data.get("key") if isinstance(data, dict) else None)
        if not isinstance(secret, str) or not secret:
            raise UnexpectedAnswerError(f"OpenRouter's answer lacks the field key while {doing}.")
        key = _parse(ApiKey, data, doing)
        if secret in key.hash + key.label:
            raise UnexpectedAnswerError(
                f"OpenRouter's answer shows the key's plaintext where none belongs while {doing}."
            )
        return CreatedKey(SecretStr(secret), key)

    async def get_key(self, key_hash: str) -> ApiKey:
        """Read one key.

        Args:
            key_hash: The key's hash at OpenRouter.

        Returns:
            The key.

        Raises:
            NotFoundError: There is no such key in this account.
            ServiceError: The call failed.
        """
        doing = "reading a key"
        return _parse(ApiKey, (await self._manage("GET", _path(key_hash), doing)).get("data"), doing)

    async def list_keys(self, workspace_id: str | None = None) -> AsyncIterator[ApiKey]:
        """Walk through all keys of a workspace, disabled and expired ones too, page by page.

        A key may be met twice, or missed, while others come and go: paging is by offset.

        Args:
            workspace_id: The workspace; the account's default one without it.

        Yields:
            Each key.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        doing = "listing the keys"
        params: dict[str, str | int] = {"include_disabled": "true", "include_expired": "true"}
        if workspace_id is not None:
            params["workspace_id"] = workspace_id
        offset = 0
        for _ in range(MAX_PAGES):
            answer = await self._manage("GET", "keys", doing, params={**params, "offset": offset})
            keys = answer.get("data")
            if not isinstance(keys, list):
                raise UnexpectedAnswerError(f"OpenRouter's answer lacks the list data while {doing}.")
            for key in keys:
                yield _parse(ApiKey, key, doing)
            # A short page need not be the last one: the list does not say how long it or a page of it is.
            if not keys:
                return
            offset += len(keys)
        raise UnexpectedAnswerError(f"OpenRouter's list of keys did not end after {MAX_PAGES} pages.")

    async def update_key(self, key_hash: str, **changes: Any) -> ApiKey:
        """Change a key's settings; a change that may have been made already is made again.

        Args:
            key_hash: The key's hash at OpenRouter.
            **changes: The fields to change, such as `disabled` or `limit`; at least one.

        Returns:
            The key after the change.

        Raises:
            ValueError: There is nothing to change.
            NotFoundError: There is no such key in this account.
            ServiceError: The call failed.
        """
        if not changes:
            raise ValueError("update_key needs at least one change.")
        doing = "changing a key"
        answer = await self._manage("PATCH", _path(key_hash), doing, json_body=changes)
        return _parse(ApiKey, answer.get("data"), doing)

    async def delete_key(self, key_hash: str) -> bool:
        """Delete a key for good.

        Args:
            key_hash: The key's hash at OpenRouter.

        Returns:
            Whether this call deleted it; `False` where this account has no such key (any more).

        Raises:
            ServiceError: The call failed, or OpenRouter did not confirm the deletion.
        """
        doing = "deleting a key"
        try:
            answer = await self._manage("DELETE", _path(key_hash), doing)
        except NotFoundError:
            return False
        if answer.get("deleted") is not True:
            raise UnexpectedAnswerError(f"OpenRouter did not confirm it while {doing}.", retryable=True)
        return True

    async def assign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Put a key under a guardrail, in place of the one that it had; a call that may have done so is made again.

        Args:
            guardrail_id: The guardrail.
            key_hash: The key's hash at OpenRouter.

        Raises:
            NotFoundError: There is no such guardrail in this account.
            UnexpectedAnswerError: The key is not under the guardrail after the call.
            ServiceError: The call failed.
        """
        doing = "assigning a guardrail"
        answer = await self._change_assignment(guardrail_id, key_hash, "", doing)
        # It is not documented whether a key that has the guardrail already counts as assigned.
        if _parse(_Assigned, answer, doing).assigned_count == 1 or await self.guardrail_of(key_hash) == guardrail_id:
            return
        raise UnexpectedAnswerError(
            f"OpenRouter did not put the key under the guardrail {redacted(guardrail_id)}: it may not have that key."
        )

    async def unassign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Take a key out of a guardrail; nothing happens to a key that is not under it.

        Args:
            guardrail_id: The guardrail.
            key_hash: The key's hash at OpenRouter.

        Raises:
            NotFoundError: There is no such guardrail in this account.
            ServiceError: The call failed.
        """
        doing = "unassigning a guardrail"
        _parse(_Unassigned, await self._change_assignment(guardrail_id, key_hash, "/remove", doing), doing)

    async def guardrail_of(self, key_hash: str) -> str | None:
        """Find the guardrail that a key is under; a key has at most one.

        Args:
            key_hash: The key's hash at OpenRouter.

        Returns:
            The guardrail's id, or `None` without one. It may be missed while other keys' assignments come and go.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        assignments = self._walk(_Assignment, "guardrails/assignments/keys", "listing the guardrails' keys")
        async for assignment in assignments:
            if assignment.key_hash == key_hash:
                return assignment.guardrail_id
        return None

    async def list_workspaces(self) -> AsyncIterator[str]:
        """Walk through the workspaces of this connection's account, page by page.

        Yields:
            Each workspace's id.

        Raises:
            ServiceError: A call failed, or the list does not end.
        """
        async for workspace in self._walk(_Workspace, "workspaces", "listing the workspaces"):
            yield workspace.id

    async def has_workspace(self, workspace_id: str) -> bool:
        """Say whether a workspace belongs to this connection's account.

        Args:
            workspace_id: The workspace.

        Returns:
            Whether the account has it.

        Raises:
            ServiceError: The call failed.
        """
        doing = "reading a workspace"
        try:
            answer = await self._manage("GET", f"workspaces/{_segment(workspace_id, 'workspace')}", doing)
        except NotFoundError:
            return False
        _parse(_Workspace, answer.get("data"), doing)
        return True

    async def current_key(self, secret: SecretStr) -> CurrentKey:
        """Use a key to look at itself, which proves that OpenRouter accepts it.

        Args:
            secret: The key's plaintext.

        Returns:
            The key's own view.

        Raises:
            UnauthorizedError: OpenRouter does not accept the key (yet, or any more).
            ServiceError: The call failed.
        """
        doing = "using a key"
        answer = await self._http.request("GET", "key", doing=doing, headers=_bearer(secret))
        return _parse(CurrentKey, answer.get("data"), doing)

    async def about_itself(self) -> CurrentKey:
        """Let the management key look at itself, which tells for one when it ends.

        Returns:
            The management key's own view.

        Raises:
            UnauthorizedError: OpenRouter does not accept the management key.
            ServiceError: The call failed.
        """
        return await self.current_key(self._management_key)

    async def login_ends(self) -> datetime | None:
        """Look up when the management key expires.

        Returns:
            The end, UTC; `None` for never, or where OpenRouter does not tell.

        Raises:
            ServiceError: OpenRouter failed.
        """
        return (await self.about_itself()).expires_at

    async def accepts(self, secret: SecretStr) -> bool:
        """Say whether a key works, however empty its budget is.

        Args:
            secret: The key's plaintext.

        Returns:
            `False` for a 401. A key over its limit (402, at times 403) is a key that works.

        Raises:
            ServiceError: The call failed in a way that says nothing about the key.
        """
        try:
            await self.current_key(secret)
        except UnauthorizedError:
            return False
        except ForbiddenError:
            return True
        except RejectedError as error:
            if error.status != PAYMENT_REQUIRED:
                raise
        return True

    async def check(self) -> str:
        """Prove that the management key may manage keys right now.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        try:
            answer = await self._manage("GET", "keys", "listing the keys")
        except (UnauthorizedError, ForbiddenError):
            raise await self._refusal() from None
        if not isinstance(answer.get("data"), list):
            raise UnexpectedAnswerError("OpenRouter's answer lacks the list data while listing the keys.")
        return f"OpenRouter at {self._http.host} accepts the management key."

    async def _refusal(self) -> KeyRotationError:
        where = f"OpenRouter at {self._http.host}"
        try:
            key = await self.about_itself()
        except UnauthorizedError:
            return UnauthorizedError(f"{where} does not accept the management key: it is wrong, disabled or deleted.")
        if key.manages_keys:
            return ForbiddenError(f"{where} accepts the management key but does not let it list keys.")
        return ForbiddenError(f"{where} says that this is a normal API key; a management key is needed here.")

    async def _change_assignment(self, guardrail_id: str, key_hash: str, change: str, doing: str) -> dict[str, Any]:
        path = f"guardrails/{_segment(guardrail_id, 'guardrail')}/assignments/keys{change}"
        try:
            return await self._manage("POST", path, doing, json_body={"key_hashes": [key_hash]})
        except NotFoundError:
            raise self._no_guardrail(guardrail_id) from None

    def _no_guardrail(self, guardrail_id: str) -> NotFoundError:
        where = f"OpenRouter at {self._http.host}"
        return NotFoundError(f"{where} has no guardrail {redacted(guardrail_id)} in this account.", status=404)

    async def _walk(self, model: type[M], path: str, doing: str) -> AsyncIterator[M]:
        """Walk through a list that says how long it is; the one of the keys does not."""
        offset = 0
        for _ in range(MAX_PAGES):
            answer = await self._manage("GET", path, doing, params={"offset": offset, "limit": PAGE_SIZE})
            page = _parse(_Page, answer, doing)
            for record in page.data:
                yield _parse(model, record, doing)
            offset += len(page.data)
            if not page.data or offset >= page.total_count:
                return
        raise UnexpectedAnswerError(f"OpenRouter's list did not end after {MAX_PAGES} pages while {doing}.")

    async def _manage(self, method: str, path: str, doing: str, **how: Any) -> dict[str, Any]:
        return await self._http.request(method, path, doing=doing, headers=_bearer(self._management_key), **how)


def _bearer(secret: SecretStr) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret.get_secret_value()}"}


def _path(key_hash: str) -> str:
    return f"keys/{_segment(key_hash, 'key')}"


def _segment(value: str, name: str) -> str:
    # Percent-encoding leaves dots alone, and servers tend to undo that of a slash before they look for the path.
    if value in {"", ".", ".."} or not value.isprintable() or set("/\\") & set(value):
        raise ConfigurationError(f"The id of the {name} is not one that OpenRouter gives out.")
    return quote(value, safe="")


def _parse(model: type[M], data: object, doing: str) -> M:
    # `from None`: pydantic's text quotes the data.
    try:
        return model.model_validate(data)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "data" for e in error.errors(include_input=False)}))
        raise UnexpectedAnswerError(
            f"OpenRouter's answer is not as documented while {doing}; missing or malformed: {fields}."
        ) from None


class OpenRouterCredentials(CredentialsBlock):
    """A connection to OpenRouter: the management key that creates, reads, changes and deletes API keys.

    Attributes:
        management_key: The management key.
        base_url: Where OpenRouter's API is.

    Example:
        List the names of all keys:

        ```python
        from blocks import OpenRouterCredentials

        credentials = OpenRouterCredentials.load("BLOCK_NAME")

        async with credentials.get_client() as openrouter:
            names = [key.name async for key in openrouter.list_keys()]
        ```
    """

    # A refused value must not be quoted by the error.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name: ClassVar[str] = "OpenRouter Credentials"
    _block_type_slug: ClassVar[str] = "openrouter-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl("https://github.com/OpenRouterTeam.png")
    _documentation_url: ClassVar[HttpUrl] = HttpUrl(
        "https://openrouter.ai/docs/guides/overview/auth/management-api-keys"
    )
    _description: ClassVar[str] = (
        "A connection to OpenRouter: a management key, which can create and delete API keys but not call models."
    )

    management_key: SecretStr = Field(
        title="Management key",
        description="A management key of the account, made at openrouter.ai under Settings, Management Keys.",
    )
    base_url: str = Field(
        default=OPENROUTER_URL,
        title="Base URL",
        description="Where OpenRouter's API is; https, or plain http on loopback only.",
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
        """Open a connection with this management key; use it in `async with`, or call its `aclose`.

        Args:
            **how: `connection`, and for tests `transport` and `sleep`, of `OpenRouterClient`.

        Returns:
            The client.
        """
        return OpenRouterClient(self.management_key, self.base_url, **how)

    async def check(self) -> str:
        """Prove that the management key may manage keys right now.

        Returns:
            One sentence that says what works.

        Raises:
            KeyRotationError: One sentence that says what is wrong.
        """
        async with self.get_client() as client:
            return await client.check()
