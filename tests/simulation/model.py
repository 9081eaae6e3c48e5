"""The world as a model: every call that leaves the process is an effect that can fail or be the last.

The real steps (`tasks`) and the real protocol (`flows.rotate.follow_protocol`) run against it unchanged.
Each effect asks the model's `fate`, which decides what happens to it.
After each effect `watch` is called, which checks the invariants.
"""

from __future__ import annotations

import asyncio
import atexit
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypeVar
from uuid import UUID

from pydantic import SecretStr

import tasks.life.plan
from blocks.destination import Content, Destination
from blocks.errors import (
    ConfigurationError,
    ConflictError,
    ForbiddenError,
    KeyRotationError,
    MissingBlockError,
    NotFoundError,
    PlaceLostError,
    RateLimitedError,
    RejectedError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
)
from blocks.openrouter.keys import ApiKey, CreatedKey, CurrentKey, KeyRequest
from flows.apply_settings import apply_deployed_settings
from flows.audit import follow_audit
from flows.remove_rotation import remove
from flows.restore_key import restore
from flows.retire import retire_due
from flows.rotate import follow_protocol
from flows.write_off_key import follow_write_off
from tasks.audit.findings import Report
from tasks.model.decisions import Identity
from tasks.model.events import Event
from tasks.model.ledger import Ledger
from tasks.model.rotation import Rotation
from tasks.steps import PLAIN, Steps
from tasks.world.ledgers import LOOKED_AT, term_variable
from tasks.world.open_ledger import OpenLedger, Term
from tasks.world.ports import Deployed
from tasks.world.run import Run
from tests.simulation.promises import promise

T = TypeVar("T")


class Crash(BaseException):
    """The process was killed: nothing after this effect happens."""


class Fate(Enum):
    """What happens to one effect."""

    WORKS = "works"
    FAILS = "fails before it takes effect"
    ANSWER_LOST = "takes effect, its answer is lost"
    LATE = "its answer is lost, and it takes effect later"
    FORBIDDEN = "is refused (403)"
    CONFLICT = "is refused (409)"
    TOO_MANY = "is refused (429)"
    KILLED_BEFORE = "the process is killed before it"
    KILLED_AFTER = "the process is killed after it"


REFUSALS = {Fate.FORBIDDEN: ForbiddenError, Fate.CONFLICT: ConflictError, Fate.TOO_MANY: RateLimitedError}
"""What OpenRouter or a destination says where it refuses a call."""
LOOKED_BEFORE = ("change a key", "assign", "unassign", "fence")
"""What some steps begin after a look at the ledger that was for the call before."""
PREFECTS = ("ledger", "deployment", "retirement", "look a run up")
"""What is asked of Prefect's API, of which no answer but a good one says whether a call took effect."""


@dataclass
class ModelKey:
    """A key at OpenRouter."""

    hash: str
    secret: str
    request: KeyRequest
    account: str
    workspace: str
    created_at: datetime
    valid_from: datetime
    disabled: bool = False
    guardrail: str | None = None
    uses: list[tuple[datetime, Decimal]] = field(default_factory=list)
    tells_last_use: bool = True

    def settings(self) -> tuple[KeyRequest, bool, str | None]:
        """What a call could have changed."""
        return self.request, self.disabled, self.guardrail

    def expired(self, now: datetime) -> bool:
        """Whether its end has come."""
        return self.request.expires_at is not None and self.request.expires_at <= now

    def works(self, now: datetime) -> bool:
        """Whether a consumer can use it."""
        return not self.disabled and not self.expired(now) and self.valid_from <= now

    def usage(self, reset: str | None, now: datetime) -> Decimal:
        """What it has spent since the limit was reset last."""
        return sum((amount for at, amount in self.uses if at >= period_start(reset, now)), Decimal(0))

    def seen_uses(self) -> list[tuple[datetime, Decimal]]:
        """The uses that OpenRouter lets anybody know of: without a date, one that costs nothing leaves no trace."""
        return [(at, amount) for at, amount in self.uses if self.tells_last_use or amount]

    def may_spend(self, now: datetime) -> Decimal | None:
        """What it may still spend now; `None` for as much as one likes."""
        limit = self.request.limit
        return None if limit is None else max(Decimal(0), limit - self.usage(self.request.limit_reset, now))

    def shown(self, now: datetime) -> ApiKey:
        """Show the key as the management API does."""
        return ApiKey(
            hash=self.hash,
            name=self.request.name,
            label=f"sk-or-v1-{self.secret[-9:-6]}...{self.secret[-4:]}",
            disabled=self.disabled,
            limit=self.request.limit,
            limit_reset=self.request.limit_reset,
            include_byok_in_limit=self.request.include_byok_in_limit,
            usage=self.usage(None, now),
            usage_daily=self.usage("daily", now),
            usage_weekly=self.usage("weekly", now),
            usage_monthly=self.usage("monthly", now),
            created_at=self.created_at,
            creator_user_id=self.request.creator_user_id,
            expires_at=self.request.expires_at,
            last_used_at=max((at for at, _ in self.uses), default=None) if self.tells_last_use else None,
            workspace_id=self.workspace,
        )


def period_start(reset: str | None, now: datetime) -> datetime:
    """When a limit was reset last."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        None: datetime.min.replace(tzinfo=UTC),
        "daily": midnight,
        "weekly": midnight - timedelta(days=midnight.weekday()),
        "monthly": midnight.replace(day=1),
    }[reset]


@dataclass
class Place:
    """A destination: what it holds, and every version it ever held."""

    checks_and_sets: bool = True
    exists: bool = True
    versions: list[str | None] = field(default_factory=list)
    other_fields: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> str | None:
        """What consumers read."""
        return self.versions[-1] if self.versions else None

    def put(self, content: str | None, other_fields: Mapping[str, str]) -> None:
        """Store a version, which holds the fields that it is given and no others."""
        self.versions.append(content)
        self.other_fields = dict(other_fields)


@dataclass(frozen=True)
class ModelContent(Content):
    """What a destination holds, with the fields beside the key, as Vault has them."""

    other_fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LateEffect:
    """A request that was given up, and that takes effect later; a write `again` and again.

    Where the store compares before it sets there is no end to that; elsewhere it cannot arrive after `ends`.
    """

    do: Callable[[], None]
    ends: datetime | None
    again: bool


class Model:
    """Everything outside of the process.

    Args:
        start: The time at which the story begins, UTC.
    """

    def __init__(self, start: datetime = datetime(2026, 12, 1, 2, 30, tzinfo=UTC)) -> None:
        self.time = start
        self.keys: dict[str, ModelKey] = {}
        self.connections: dict[str, str] = {"openrouter": "account-1"}
        self.deleted_connections: set[str] = set()
        self.revoked_accounts: set[str] = set()
        self.variables: dict[str, Any] = {}
        self.signatures = 0
        self.places: dict[str, Place] = {}
        self.runs: set[UUID] = set()
        self.retirements: dict[tuple[str, datetime], bool] = {}
        self.deployments: dict[str, Rotation] = {}
        self.interval = timedelta(0)
        self.events: list[dict[str, str]] = []
        self.tells_last_use = True
        self.validity_lag = timedelta(0)
        self.longest_name: int | None = None
        self.late: list[LateEffect] = []
        self.story: list[str] = []
        self.fate: Callable[[str], Fate] = lambda _effect: Fate.WORKS
        self.watch: Callable[[str], None] = lambda _effect: None
        self._count = 0

    def tell(self, sentence: str) -> None:
        """Add a line to the story."""
        self.story.append(sentence)

    def fresh(self) -> str:
        """Make something that was never there before."""
        self._count += 1
        return f"{self._count:09d}"

    def alive(self) -> dict[str, ModelKey]:
        """The keys that exist and are not disabled."""
        return {key.hash: key for key in self.keys.values() if not key.disabled}

    def works(self, secret: str | None) -> bool:
        """Whether a consumer can use a secret as a key now."""
        return any(key.secret == secret and key.works(self.time) for key in self.keys.values())

    def serves(self, secret: str | None) -> bool:
        """Whether a secret works as a key, or has come to its own end, which nobody can help who has not rotated."""
        return self.works(secret) or any(k.secret == secret and k.expired(self.time) for k in self.keys.values())

    def add_key(self, name: str, request: KeyRequest, account: str) -> ModelKey:
        """Let somebody else make a key."""
        key = ModelKey(
            hash=name,
            secret=f"sk-or-v1-{self.fresh()}",
            request=request,
            account=account,
            workspace=f"default-of-{account}",
            created_at=self.time,
            valid_from=self.time,
        )
        self.keys[key.hash] = key
        return key

    def ledger(self, rotation: str) -> Ledger | None:
        """The ledger as it is stored."""
        value = self.ledgers().get(rotation)
        return None if value is None else Ledger.model_validate(value)

    def terms(self, rotation: str) -> list[Term]:
        """The terms of a ledger, the newest first."""
        found = (name.rsplit("_", 1) for name in self.variables)
        numbers = sorted((int(number) for name, number in found if name.endswith(f"_{rotation}")), reverse=True)
        return [Term(number, self.variables[term_variable(rotation, number)]) for number in numbers]

    def ledgers(self) -> dict[str, Any]:
        """The newest term of each rotation."""
        names = sorted({name.split("_")[1] for name in self.variables})
        found = {name: self.terms(name)[0].value for name in names}
        return {name: value for name, value in found.items() if not Ledger.model_validate(value).is_closed}

    def put_ledger(self, rotation: str, value: Any) -> None:
        """Let a person overwrite the newest term, or make the first one."""
        terms = self.terms(rotation)
        self.variables[term_variable(rotation, terms[0].number if terms else 1)] = value

    def cancel_retirements(self, rotation: str, but: Collection[datetime]) -> None:
        """Cancel the retirements that are still to come."""
        cancelled = [(name, at) for name, at in self.retirements if name == rotation and at not in but]
        self.retirements.update(dict.fromkeys(cancelled, False))

    def late_effects_happen(self) -> None:
        """Let everything that may take effect late do so; it may do so again, as long as it can arrive at all."""
        self.late = [effect for effect in self.late if effect.ends is None or self.time <= effect.ends]
        for effect in self.late:
            effect.do()
        self.late = [effect for effect in self.late if effect.again]

    def settle(self) -> None:
        """Let everything that may take effect late do so for the last time."""
        self.late_effects_happen()
        self.late.clear()


class Process:
    """One process that runs steps against the model; after a crash it can do nothing any more."""

    def __init__(self, model: Model, name: str = "run") -> None:
        self.model = model
        self.name = name
        self.dead = False
        self.gate: Callable[[str], Awaitable[None]] | None = None
        self.seen_signatures: int | None = None
        self.begun_changes: list[str] = []
        self.made: set[str] = set()

    async def effect(
        self,
        what: str,
        do: Callable[[], T],
        *,
        late: bool = False,
        arrives_within: timedelta | None = None,
        changes: bool = False,
    ) -> T:
        """Do something outside of the process, as the model's fate has it.

        Args:
            what: What is done, in words by which a fate is aimed at it.
            do: Does it.
            late: Whether it can take effect after the process has given it up.
            arrives_within: How long after that it can still take effect; for ever by default.
            changes: Whether it changes what the rotation is responsible for.
        """
        if changes and not what.startswith(LOOKED_BEFORE):
            # What was begun in time may take effect later; nothing may be begun any more.
            promise(self.seen_signatures == self.model.signatures, f"I5: a run that lost its place began to {what}")
            self.begun_changes.append(what)
        if self.gate is not None:
            await self.gate(what)
        if self.dead:
            raise Crash
        fate = self.model.fate(what)
        if fate is not Fate.WORKS:
            self.model.tell(f"    {self.name}: {what}: {fate.value}")
        if fate is Fate.KILLED_BEFORE:
            self.dead = True
            raise Crash
        if fate is Fate.FAILS:
            # A refused create is certain; of most other failures nobody can tell whether they took effect.
            raise UnavailableError(f"{what} failed.", outcome_unknown=not what.startswith("create"))
        if fate in REFUSALS:
            raise _refusal(what, fate)
        if fate is Fate.LATE and late:
            ends = None if arrives_within is None else self.model.time + arrives_within
            self.model.late.append(LateEffect(lambda: self._later(what, do), ends, again=what.startswith("write")))
            raise UnavailableError(f"{what} was not answered.")
        return self._take_effect(what, do, fate)

    def _later(self, what: str, do: Callable[[], T]) -> None:
        self.model.tell(f"    {self.name}: {what}: takes effect now")
        # Nobody is there any more to hear of a refusal.
        with suppress(KeyRotationError):
            do()
        self.model.watch(f"late: {what}")

    def _take_effect(self, what: str, do: Callable[[], T], fate: Fate) -> T:
        try:
            result = do()
        finally:
            self.model.watch(what)
        if fate is Fate.KILLED_AFTER:
            self.dead = True
            raise Crash
        if fate in (Fate.ANSWER_LOST, Fate.LATE):
            raise UnavailableError(f"{what} was not answered.")
        return result


def _refusal(what: str, fate: Fate) -> ServiceError:
    if any(word in what for word in PREFECTS):
        return ServiceError(f"Prefect refused: {what}.", outcome_unknown=True, retryable=True)
    return REFUSALS[fate](f"Refused: {what}.")


class ModelOpenRouter:
    """OpenRouter's key management, as one connection sees it."""

    def __init__(self, process: Process, connection: str) -> None:
        self._process = process
        self._model = process.model
        self._connection = connection

    def _account(self) -> str:
        account = self._model.connections[self._connection]
        if account in self._model.revoked_accounts:
            raise UnauthorizedError("OpenRouter does not accept the management key.")
        return account

    def _own(self, key_hash: str) -> ModelKey:
        key = self._model.keys.get(key_hash)
        if key is None or key.account != self._account():
            raise NotFoundError("OpenRouter knows no such key.")
        return key

    async def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create a key."""
        created = await self._process.effect(
            "create the key at OpenRouter", lambda: self._create(request), late=True, changes=True
        )
        self._process.made.add(created.key.hash)
        return created

    def _create(self, request: KeyRequest) -> CreatedKey:
        model, account, mark = self._model, self._account(), self._model.fresh()
        if not self._knows(request.workspace_id):
            raise RejectedError("OpenRouter knows no such workspace.")
        key = ModelKey(
            hash=f"hash-{mark}",
            secret=f"sk-or-v1-{mark}",
            request=request.model_copy(update={"name": request.name[: model.longest_name]}),
            account=account,
            workspace=request.workspace_id or f"default-of-{account}",
            created_at=model.time,
            valid_from=model.time + model.validity_lag,
            tells_last_use=model.tells_last_use,
        )
        model.keys[key.hash] = key
        return CreatedKey(SecretStr(key.secret), key.shown(model.time))

    async def get_key(self, key_hash: str) -> ApiKey:
        """Read a key."""
        return await self._process.effect(
            "read the key at OpenRouter", lambda: self._own(key_hash).shown(self._model.time)
        )

    async def update_key(self, key_hash: str, **changes: Any) -> ApiKey:
        """Change a key."""
        return await self._process.effect(
            "change a key at OpenRouter", lambda: self._update(key_hash, changes), changes=True
        )

    def _update(self, key_hash: str, changes: dict[str, Any]) -> ApiKey:
        key = self._own(key_hash)
        settings = dict(changes)
        key.disabled = settings.pop("disabled", key.disabled)
        key.request = key.request.model_copy(update=settings)
        return key.shown(self._model.time)

    async def assign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Give a key its guardrail."""
        await self._process.effect("assign the guardrail", lambda: self._guard(key_hash, guardrail_id), changes=True)

    async def unassign_guardrail(self, guardrail_id: str, key_hash: str) -> None:
        """Take a guardrail away."""
        await self._process.effect("unassign the guardrail", lambda: self._guard(key_hash, None), changes=True)

    def _guard(self, key_hash: str, guardrail_id: str | None) -> None:
        self._own(key_hash).guardrail = guardrail_id

    async def guardrail_of(self, key_hash: str) -> str | None:
        """Say which guardrail a key has."""
        return await self._process.effect("list the guardrails", lambda: self._own(key_hash).guardrail)

    async def list_workspaces(self) -> AsyncIterator[str]:
        """List the workspaces."""
        for workspace in await self._process.effect("list the workspaces at OpenRouter", self._workspaces):
            yield workspace

    def _workspaces(self) -> list[str]:
        account = self._account()
        others = {key.workspace for key in self._model.keys.values() if key.account == account}
        return sorted({f"default-of-{account}", *others})

    async def about_itself(self) -> CurrentKey:
        """Look at the management key."""
        await self._process.effect("use the management key", self._account)
        return CurrentKey(label="management key")

    async def check(self) -> str:
        """Try the management key."""
        return await self._process.effect("try the management key", self._account)

    async def list_keys(self, workspace_id: str | None = None) -> AsyncIterator[ApiKey]:
        """List the keys."""
        for key in await self._process.effect("list the keys at OpenRouter", lambda: self._list(workspace_id)):
            yield key

    def _list(self, workspace_id: str | None) -> list[ApiKey]:
        account = self._account()
        wanted = workspace_id or f"default-of-{account}"
        found = [k for k in self._model.keys.values() if k.account == account and k.workspace == wanted]
        return [key.shown(self._model.time) for key in found]

    async def delete_key(self, key_hash: str) -> bool:
        """Delete a key."""
        # What a process has just made, and no ledger was ever told of, is its own to delete.
        explained = key_hash in json.dumps(self._model.ledgers())
        changes = explained or key_hash not in self._process.made
        try:
            await self._process.effect("delete a key at OpenRouter", lambda: self._delete(key_hash), changes=changes)
        except NotFoundError:
            return False
        return True

    def _delete(self, key_hash: str) -> None:
        del self._model.keys[self._own(key_hash).hash]

    async def has_workspace(self, workspace_id: str) -> bool:
        """Say whether the account has a workspace."""
        return await self._process.effect("read the workspace at OpenRouter", lambda: self._knows(workspace_id))

    def _knows(self, workspace_id: str | None) -> bool:
        own = f"default-of-{self._account()}"
        return workspace_id is None or not workspace_id.startswith("default-of-") or workspace_id == own

    async def accepts(self, secret: SecretStr) -> bool:
        """Use a key."""
        return await self._process.effect("use the key", lambda: self._model.works(secret.get_secret_value()))


class ModelDestination(Destination):
    """A destination, as one process sees it."""

    def __init__(self, process: Process, name: str) -> None:
        self.name = name
        self._process = process
        self._place = process.model.places[name]

    def place(self) -> str:
        """Name it."""
        return self.name

    async def read_content(self) -> Content:
        """Read it."""
        return await self._process.effect(f"read {self.name}", self._content)

    def _content(self) -> Content:
        content = self._place.content
        version = len(self._place.versions) if self._place.checks_and_sets else None
        return ModelContent(None if content is None else SecretStr(content), version, dict(self._place.other_fields))

    async def read_older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:
        """Look an older version up."""
        return await self._process.effect(f"read older versions of {self.name}", lambda: self._older(is_wanted))

    def _older(self, is_wanted: Callable[[SecretStr], bool]) -> SecretStr | None:
        kept = self._place.versions if self._place.checks_and_sets else []
        found = [SecretStr(content) for content in reversed(kept) if content is not None]
        return next((secret for secret in found if is_wanted(secret)), None)

    async def check(self) -> str:
        """Try it."""
        return await self._process.effect(f"try {self.name}", lambda: f"{self.name} works.")

    async def write_content(self, value: SecretStr, content: Content, written_by: Mapping[str, str]) -> None:
        """Write it."""
        await self._process.effect(
            f"write {self.name}",
            lambda: self._write(value.get_secret_value(), content),
            late=True,
            arrives_within=None if self._place.checks_and_sets else self.late_writes,
            changes=True,
        )

    def _write(self, value: str | None, content: Content) -> None:
        if self._place.checks_and_sets and content.version != len(self._place.versions):
            raise ConflictError(f"{self.name} was changed by somebody else.")
        # As the block does: what was read is written back, and what was not read is read now.
        self._place.put(value, content.other_fields if isinstance(content, ModelContent) else self._place.other_fields)

    async def fence(self, content: Content) -> Content:
        """Make older writes fail."""
        if self._place.checks_and_sets:
            text = content.value.get_secret_value() if content.value is not None else None
            await self._process.effect(f"fence {self.name}", lambda: self._write(text, content), changes=True)
        return content

    async def aclose(self) -> None:
        """Nothing to close."""


class ModelVault(ModelDestination):
    """A destination that checks and sets, so that no write to it arrives late."""

    late_writes = timedelta(0)


class ModelStore:
    """The terms of a ledger in Prefect's variables, as one run sees them."""

    def __init__(self, process: Process, rotation: str) -> None:
        self._process = process
        self._model = process.model
        self._rotation = rotation
        self._expected: int | None = None
        self._looked = False
        process.seen_signatures = None

    async def newest(self) -> list[Term]:
        """Read the newest terms."""
        return await self._process.effect("read the ledger", self._read)

    def _read(self) -> list[Term]:
        terms = self._model.terms(self._rotation)
        newest = terms[0].number if terms else None
        if not self._looked or newest == self._expected:
            self._process.seen_signatures = self._model.signatures
            self._looked, self._expected = True, newest
        return terms[:LOOKED_AT]

    async def create(self, term: Term) -> None:
        """Make a term; a request that was given up may still make it, whenever that is."""
        await self._process.effect("write the ledger", lambda: self._create(term), late=True)

    def _create(self, term: Term) -> None:
        name = term_variable(self._rotation, term.number)
        if name in self._model.variables:
            if self._model.variables[name] == term.value:
                return
            raise PlaceLostError("Another run has just written the ledger.")
        self._model.variables[name] = term.value
        if self._model.terms(self._rotation)[0].number == term.number:
            self._model.signatures += 1
            self._process.seen_signatures = self._model.signatures
            self._expected = term.number

    async def close_format_1(self, value: Mapping[str, Any]) -> None:
        """Nothing to close: no history begins with a ledger of format 1."""

    async def delete(self, numbers: Iterable[int]) -> None:
        """Delete terms."""
        names = [term_variable(self._rotation, number) for number in numbers]
        await self._process.effect("delete terms of the ledger", lambda: self._delete(names))

    def _delete(self, names: Collection[str]) -> None:
        newest = self._model.terms(self._rotation)[:1]
        for name in names:
            self._model.variables.pop(name, None)
        if self._model.terms(self._rotation)[:1] != newest:
            self._model.signatures += 1
            self._process.seen_signatures = self._model.signatures
            self._expected = None


class ModelWorld:
    """The way to everything outside, as one process sees it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> datetime:
        """Tell the time."""
        return self._process.model.time

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._process.model.time += timedelta(seconds=seconds)

    async def connection(self, name: str) -> ModelOpenRouter:
        """Open a connection."""
        if name not in self._process.model.connections or name in self._process.model.deleted_connections:
            raise MissingBlockError(f"rotation.connection: the block openrouter-credentials/{name} does not exist.")
        return ModelOpenRouter(self._process, name)

    async def destination(self, name: str) -> ModelDestination:
        """Open a destination."""
        if name not in self._process.model.places or not self._process.model.places[name].exists:
            raise MissingBlockError(f"rotation.destinations: the block {name} does not exist.")
        kind = ModelVault if self._process.model.places[name].checks_and_sets else ModelDestination
        return kind(self._process, name)

    async def known_runs(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Say which runs Prefect knows."""
        return await self._process.effect("look runs up", lambda: self._process.model.runs & set(run_ids))

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[ModelWorld]:
        """Open another world."""
        yield ModelWorld(self._process)

    async def emit(self, event: Event, rotation: str, **payload: str) -> None:
        """Tell of an event; it is no effect, because nothing waits for it."""
        promise(set(payload) == set(event.payload), f"{event} tells {sorted(payload)}")
        self._process.model.events.append({"event": event.value, "rotation": rotation, **payload})
        self._process.model.watch(f"tell of {event.value}")

    async def check_deployment(self) -> None:
        """Refuse nothing: no run waits here."""

    async def longest_interval(self) -> timedelta:
        """Tell the longest interval."""
        return self._process.model.interval

    async def deployed_rotation(self, name: str) -> Rotation:
        """Read the deployment."""
        found = await self._process.effect("read the deployment", lambda: self._process.model.deployments.get(name))
        if found is None:
            raise ConfigurationError(f"rotation: there is no deployment rotate/{name}.")
        return found

    async def delete_deployment(self, name: str) -> bool:
        """Delete the deployment."""
        return await self._process.effect(
            "delete the deployment", lambda: self._process.model.deployments.pop(name, None) is not None
        )

    async def ledgers(self) -> AsyncIterator[tuple[str, Any]]:
        """Walk through the ledgers."""
        found = await self._process.effect("read the ledgers", self._process.model.ledgers)
        for name, value in found.items():
            yield name, value

    async def deployments(self) -> AsyncIterator[Deployed]:
        """Walk through the deployments."""
        found = await self._process.effect("read the deployments", lambda: dict(self._process.model.deployments))
        for name, rotation in found.items():
            yield Deployed(name, rotation, self._process.model.interval)

    async def cancel_retirements(self, name: str, but: Collection[datetime]) -> None:
        """Cancel what is to come."""
        await self._process.effect("cancel the retirements", lambda: self._process.model.cancel_retirements(name, but))

    async def schedule_retirement(self, rotation: str, at: datetime, *, even_if_cancelled: bool) -> bool:
        """Schedule a retirement; one that was cancelled stays so, unless another one is to take its place."""
        retirements = self._process.model.retirements
        await self._process.effect(
            "schedule the retirement",
            lambda: retirements.update({(rotation, at): even_if_cancelled or retirements.get((rotation, at), True)}),
        )
        return True


def open_run(model: Model, name: str, identity: Identity, process: Process) -> Run:
    """Begin a run in a process."""
    model.runs.add(identity.id)
    return Run(
        name,
        identity,
        OpenLedger(name, ModelStore(process, name), identity.id),
        ModelWorld(process),
    )


@dataclass(frozen=True)
class Ended:
    """How a run ended: with a sentence, with an error, or killed."""

    message: str | None = None
    error: KeyRotationError | None = None
    killed: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether the run completed."""
        return self.message is not None

    def __str__(self) -> str:
        return "it was killed" if self.killed else self.message or f"it failed: {self.error}"


async def run_protocol(
    model: Model, rotation: Rotation, identity: Identity, process: Process | None = None, steps: Steps = PLAIN
) -> Ended:
    """Run the protocol of a rotation once, in a process of its own."""
    process = process or Process(model)
    run = open_run(model, rotation.name, identity, process)
    return await _until_it_ends(follow_protocol(run, rotation, steps), run)


async def run_retire(model: Model, rotation: str, identity: Identity, process: Process | None = None) -> Ended:
    """Run the retirement of a rotation once, in a process of its own."""
    process = process or Process(model, "retire")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(retire_due(run, PLAIN), run)


async def run_restore(model: Model, rotation: str, identity: Identity, process: Process | None = None) -> Ended:
    """Bring back the key that was superseded last, in a process of its own."""
    process = process or Process(model, "restore")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(restore(run, "", PLAIN), run)


async def run_apply(model: Model, rotation: str, identity: Identity, process: Process | None = None) -> Ended:
    """Apply the deployment's settings to the current key, in a process of its own."""
    process = process or Process(model, "apply")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(apply_deployed_settings(run), run)


async def run_remove(
    model: Model, rotation: str, identity: Identity, revoke_at: datetime | None, process: Process | None = None
) -> Ended:
    """Take the rotation away, in a process of its own."""
    process = process or Process(model, "remove")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(remove(run, revoke_at, PLAIN), run)


async def run_write_off(
    model: Model, rotation: str, identity: Identity, key_hash: str, process: Process | None = None
) -> Ended:
    """Write a key off, in a process of its own."""
    process = process or Process(model, "write off")
    run = open_run(model, rotation, identity, process)
    return await _until_it_ends(follow_write_off(run, key_hash, "its account is gone"), run)


@dataclass(frozen=True)
class Planned:
    """How a look ahead ended, and the steps that it names."""

    ended: Ended
    steps: tuple[str, ...] = ()


async def run_plan(model: Model, rotation: Rotation, identity: Identity, process: Process | None = None) -> Planned:
    """Say what a run would do now, in a process of its own."""
    run = open_run(model, rotation.name, identity, process or Process(model, "plan"))
    steps: list[str] = []

    async def work() -> str:
        steps.extend((await tasks.life.plan.plan(run, rotation))[1])
        return "Nothing was changed."

    return Planned(await _until_it_ends(work()), tuple(steps))


@dataclass(frozen=True)
class Audited:
    """How an audit ended, and what it reports."""

    ended: Ended
    report: Report | None = None


async def run_audit(
    model: Model, connection: str, identity: Identity, *, repair: bool, process: Process | None = None
) -> Audited:
    """Audit a connection, in a process of its own."""
    process = process or Process(model, "audit")
    reports: list[Report] = []

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[Run]:
        yield Run(
            name,
            identity,
            OpenLedger(name, ModelStore(process, name), identity.id),
            ModelWorld(process),
        )

    async def work() -> str:
        open_rotation = opened if repair else None
        reports.append(await follow_audit(ModelWorld(process), connection, timedelta(days=90), open_rotation))
        return f"{reports[0].findings}"

    ended = await _until_it_ends(work())
    return Audited(ended, reports[0] if reports else None)


async def _until_it_ends(work: Awaitable[str], run: Run | None = None) -> Ended:
    try:
        try:
            ended = Ended(message=await work)
        except KeyRotationError as error:
            ended = Ended(error=error)
        if run is not None:
            with suppress(ServiceError):
                await run.prune()
    except Crash:
        return Ended(killed=True)
    return ended


LOOP = asyncio.new_event_loop()
"""One for all runs: thousands of them take a millisecond each, and so does making a loop."""
atexit.register(LOOP.close)


def play(work: Awaitable[T]) -> T:
    """Run something to its end from a test that is not async; nothing that it has begun goes on after that."""

    async def main() -> T:
        return await work

    try:
        return LOOP.run_until_complete(main())
    finally:
        if left := asyncio.all_tasks(LOOP):
            for task in left:
                task.cancel()
            LOOP.run_until_complete(asyncio.wait(left))
