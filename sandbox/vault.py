"""A stand-in of Vault: KV versions 1 and 2, four auth methods, policies, sealing.

Source: Vault's API documentation (https://developer.hashicorp.com/vault/api-docs). If a `vault` or `bao` binary is on
PATH, the tests also run against that.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.server import make_app, serve

ROOT_TOKEN = "root-token-of-the-local-stand-in"
MAX_VERSIONS = 10
MAX_CUSTOM_KEYS = 64
MAX_CUSTOM_KEY_BYTES = 128
MAX_CUSTOM_VALUE_BYTES = 512
MERGE_PATCH = "application/merge-patch+json"
CAPABILITY = {"GET": "read", "LIST": "list", "POST": "update", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
DEFAULT_POLICY = ("auth/token/lookup-self", "auth/token/renew-self", "auth/token/revoke-self", "sys/capabilities-self")

Json = dict[str, Any]
Policy = dict[str, set[str]]
Clock = Callable[[], datetime]


class VaultError(Exception):
    """An error response.

    Args:
        status: The HTTP status.
        errors: Vault's messages.
        data: The response's `data`, if Vault sends it with the error.
    """

    def __init__(self, status: int, *errors: str, data: Json | None = None) -> None:
        super().__init__(*errors)
        self.status, self.errors, self.data = status, list(errors), data


def permission_denied() -> VaultError:
    """Return the error of a policy; an unknown token gets only the words `permission denied`."""
    return VaultError(403, "1 error occurred:\n\t* permission denied\n\n")


@dataclass
class Version:
    """One version of a secret."""

    data: Json
    created: datetime
    deleted: datetime | None = None
    destroyed: bool = False

    @property
    def gone(self) -> bool:
        """Whether reading it answers 404."""
        return self.destroyed or self.deleted is not None


@dataclass
class SecretRecord:
    """A path of a KV version 2 engine."""

    created: datetime
    updated: datetime
    versions: dict[int, Version] = field(default_factory=dict)
    current: int = 0
    custom_metadata: dict[str, str] | None = None
    max_versions: int = 0
    cas_required: bool = False
    delete_version_after: str = "0s"


@dataclass
class Token:
    """A token with its policy: path patterns and their capabilities."""

    policy: Policy
    expires: datetime | None = None
    accessor: str = field(default_factory=lambda: secrets.token_hex(8))
    default_policy: bool = True


def _text(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _merged(kept: Json, patch: Json) -> Json:
    # RFC 7396.
    merged = dict(kept)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            old = merged.get(name)
            merged[name] = _merged(old if isinstance(old, dict) else {}, value)
        else:
            merged[name] = value
    return merged


def _checked_custom(custom: Json) -> dict[str, str]:
    if len(custom) > MAX_CUSTOM_KEYS:
        raise VaultError(400, f"custom_metadata validation failed: payload must contain at most {MAX_CUSTOM_KEYS} keys")
    for key, value in custom.items():
        for what, text, limit in (("key", key, MAX_CUSTOM_KEY_BYTES), ("value", str(value), MAX_CUSTOM_VALUE_BYTES)):
            if not 0 < len(text.encode()) <= limit:
                raise VaultError(400, f"custom_metadata validation failed: length of {what} must be at most {limit}")
            if not text.isprintable():
                raise VaultError(400, f"custom_metadata validation failed: {what} contains unprintable characters")
    return {key: str(value) for key, value in custom.items()}


def _listed(paths: Iterable[str], under: str) -> Json:
    prefix = f"{under}/" if under else ""
    below = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    keys = sorted({first + ("/" if rest else "") for first, rest, _ in (path.partition("/") for path in below)})
    if not keys:
        raise VaultError(404)
    return {"keys": keys}


class KvVersion1:
    """An engine without versions: one document per path."""

    version = "1"

    def __init__(self) -> None:
        self.documents: dict[str, Json] = {}

    def exists(self, path: str) -> bool:
        """Return whether a write to the path is an update."""
        return path in self.documents

    def handle(self, method: str, path: str, body: Json, _query: dict[str, str]) -> Json | None:
        """Return the data of the response; `None` for an empty response."""
        match method:
            case "LIST":
                return _listed(self.documents, path)
            case "GET" if path in self.documents:
                return self.documents[path]
            case "GET":
                raise VaultError(404)
            case "POST" | "PUT":
                self.documents[path] = body
            case "DELETE":
                self.documents.pop(path, None)
            case _:
                raise VaultError(405)
        return None


class KvVersion2:
    """An engine with versions, soft deletion and metadata.

    Args:
        now: The clock, UTC.
    """

    version = "2"

    def __init__(self, now: Clock) -> None:
        self.now = now
        self.records: dict[str, SecretRecord] = {}

    def exists(self, path: str) -> bool:
        """Return whether a write to the path is an update."""
        return path.partition("/")[2] in self.records

    def handle(self, method: str, path: str, body: Json, query: dict[str, str]) -> Json | None:
        """Return the data of the response; `None` for an empty response."""
        kind, _, name = path.partition("/")
        method = "POST" if method == "PUT" else method
        change = {"delete": self._delete, "undelete": self._undelete, "destroy": self._destroy}.get(kind)
        if change is not None and method == "POST":
            for number in body.get("versions") or []:
                change(self._record(name).versions.get(int(number)))
            return None
        match kind, method:
            case "data", "GET":
                return self.read(name, int(query.get("version") or 0))
            case "data", "POST":
                return self.write(name, body.get("data"), body.get("options") or {})
            case "data", "PATCH":
                return self.patch(name, body)
            case "data", "DELETE":
                record = self._record(name)
                self._delete(record.versions.get(record.current))
                return None
            case "metadata", _:
                return self._metadata(method, name, body)
            case _:
                raise VaultError(404)

    def _record(self, name: str) -> SecretRecord:
        if name not in self.records:
            raise VaultError(404)
        return self.records[name]

    def _made(self, name: str) -> SecretRecord:
        return self.records.setdefault(name, SecretRecord(self.now(), self.now()))

    def read(self, name: str, number: int = 0) -> Json:
        """Return data and metadata of a version; 0 is the current one.

        Raises:
            VaultError: The version does not exist, or was deleted.
        """
        record = self._record(name)
        number = number or record.current
        version = record.versions.get(number)
        if version is None:
            raise VaultError(404)
        answer = {"data": None if version.gone else version.data, "metadata": self._described(record, number)}
        if version.gone:
            raise VaultError(404, data=answer)
        return answer

    def _described(self, record: SecretRecord, number: int, *, custom: bool = True) -> Json:
        version = record.versions[number]
        described = {
            "created_time": _text(version.created),
            "deletion_time": _text(version.deleted),
            "destroyed": version.destroyed,
        }
        return {**described, "version": number, "custom_metadata": record.custom_metadata} if custom else described

    def write(self, name: str, data: Any, options: Json) -> Json:
        """Write a version and return its metadata.

        Args:
            name: The secret's path.
            data: The fields.
            options: `cas` for a check-and-set.

        Raises:
            VaultError: The check-and-set does not match, or there is no data.
        """
        if not isinstance(data, dict):
            raise VaultError(400, "no data provided")
        record = self.records.get(name)
        self._check_and_set(record, options.get("cas"))
        record = record or self._made(name)
        record.current += 1
        record.updated = self.now()
        record.versions[record.current] = Version(data, self.now())
        for number in sorted(record.versions)[: -(record.max_versions or MAX_VERSIONS)]:
            del record.versions[number]
        return self._described(record, record.current)

    @staticmethod
    def _check_and_set(record: SecretRecord | None, cas: Any) -> None:
        if cas is None:
            if record is not None and record.cas_required:
                raise VaultError(400, "check-and-set parameter required for this call")
            return
        if not str(cas).isdigit():
            raise VaultError(400, "error parsing check-and-set parameter")
        if int(cas) != (record.current if record else 0):
            raise VaultError(400, "check-and-set parameter did not match the current version")

    def patch(self, name: str, body: Json) -> Json:
        """Write a version by a merge patch of the current one, and return its metadata.

        Args:
            name: The secret's path.
            body: `data`, a merge patch, and `options`.

        Raises:
            VaultError: There is nothing to patch, or the check-and-set does not match.
        """
        return self.write(name, _merged(self.read(name)["data"], body.get("data") or {}), body.get("options") or {})

    def _delete(self, version: Version | None) -> None:
        if version is not None and version.deleted is None:
            version.deleted = self.now()

    def _undelete(self, version: Version | None) -> None:
        if version is not None and not version.destroyed:
            version.deleted = None

    def _destroy(self, version: Version | None) -> None:
        if version is not None:
            version.destroyed, version.data = True, {}

    def _metadata(self, method: str, name: str, body: Json) -> Json | None:
        match method:
            case "LIST":
                return _listed(self.records, name)
            case "GET":
                return self._described_record(self._record(name))
            case "DELETE":
                self.records.pop(name, None)
            case "PATCH" | "POST":
                self._change_metadata(name, body, patch=method == "PATCH")
            case _:
                raise VaultError(405)
        return None

    def _change_metadata(self, name: str, body: Json, *, patch: bool) -> None:
        if patch:
            self._record(name)
        custom = body.get("custom_metadata")
        checked = None if custom is None else _checked_custom({k: v for k, v in custom.items() if v is not None})
        record = self._made(name)
        if checked is not None:
            record.custom_metadata = _merged(record.custom_metadata or {}, custom or {}) if patch else checked
        record.max_versions = int(body.get("max_versions", record.max_versions))
        record.cas_required = bool(body.get("cas_required", record.cas_required))
        record.delete_version_after = str(body.get("delete_version_after", record.delete_version_after))
        record.updated = self.now()

    def _described_record(self, record: SecretRecord) -> Json:
        return {
            "cas_required": record.cas_required,
            "created_time": _text(record.created),
            "current_version": record.current,
            "custom_metadata": record.custom_metadata,
            "delete_version_after": record.delete_version_after,
            "max_versions": record.max_versions,
            "oldest_version": min(record.versions, default=0),
            "updated_time": _text(record.updated),
            "versions": {str(number): self._described(record, number, custom=False) for number in record.versions},
        }


class VaultSandbox:
    """The state of the stand-in, which tests read and change.

    Args:
        now: The clock, UTC.
        token_ttl: The lifetime of a token from a login.
    """

    def __init__(self, *, now: Clock = lambda: datetime.now(UTC), token_ttl: timedelta = timedelta(hours=1)) -> None:
        self.now = now
        self.token_ttl = token_ttl
        self.sealed = False
        self.namespaces: dict[str, dict[str, KvVersion1 | KvVersion2]] = {}
        self.tokens = {ROOT_TOKEN: Token({"*": {"root"}})}
        self.logins: dict[tuple[str, str, str], Policy] = {}
        self.mount("secret")

    def mount(self, path: str, version: str = "2", namespace: str = "") -> None:
        """Enable a KV engine of version `1` or `2`, and create its namespace if necessary."""
        engine = KvVersion2(self.now) if version == "2" else KvVersion1()
        self.namespaces.setdefault(namespace, {})[path] = engine

    def allow_login(self, mount: str, role: str, credential: str, policy: Policy | None = None) -> None:
        """Allow a login.

        Args:
            mount: The auth method's mount, such as `approle`, `kubernetes` or `jwt`.
            role: The role, or role id.
            credential: The secret id or JWT.
            policy: The policy of the token; root by default.
        """
        self.logins[mount, role, credential] = policy or {"*": {"root"}}

    def add_token(self, policy: Policy, ttl: timedelta | None = None) -> str:
        """Create a token, which expires after `ttl` if given."""
        token = f"hvs.{secrets.token_urlsafe(24)}"
        self.tokens[token] = Token(policy, self.now() + ttl if ttl else None)
        return token

    def end_tokens(self) -> None:
        """Let every token but the root token expire."""
        self.tokens = {name: token for name, token in self.tokens.items() if name == ROOT_TOKEN}

    def log_in(self, mount: str, role: str, credential: str) -> Json:
        """Log in and return the `auth` part of the response.

        Raises:
            VaultError: The credential is wrong, or the auth method is not enabled.
        """
        if mount not in {enabled for enabled, _, _ in self.logins}:
            raise VaultError(403, "permission denied")
        policy = self.logins.get((mount, role, credential))
        if policy is None:
            raise VaultError(400, "invalid role or secret ID")
        token = self.add_token(policy, self.token_ttl)
        return {**self.lease(self.tokens[token]), "client_token": token, "token_type": "service", "metadata": {}}

    def lease(self, token: Token) -> Json:
        """Return a token's description, as in the response to a login."""
        left = int((token.expires - self.now()).total_seconds()) if token.expires else 0
        policies = ["default"] if token.default_policy else []
        return {
            "accessor": token.accessor,
            "lease_duration": left,
            "renewable": token.expires is not None,
            "policies": policies,
            "token_policies": policies,
        }

    def token(self, name: str) -> Token:
        """Return a token.

        Raises:
            VaultError: The token is unknown or has expired.
        """
        token = self.tokens.get(name)
        if token is None or (token.expires is not None and token.expires <= self.now()):
            raise VaultError(403, "permission denied")
        return token

    def granted(self, token: Token, path: str) -> set[str]:
        """Return a token's capabilities on a path: those of its most specific pattern, and of the default policy."""
        fitting = [pattern for pattern in token.policy if _fits(pattern, path)]
        best = max(fitting, key=lambda pattern: (not pattern.endswith("*"), len(pattern)), default=None)
        granted = token.policy[best] if best is not None else set()
        by_default = token.default_policy and path in DEFAULT_POLICY and "deny" not in granted
        return granted | {"read", "update"} if by_default else granted

    def engine(self, namespace: str, path: str) -> tuple[str, KvVersion1 | KvVersion2]:
        """Return the mount and the engine of a path.

        Raises:
            VaultError: The engine or the namespace does not exist.
        """
        if namespace not in self.namespaces:
            raise VaultError(404, "namespace not found")
        mounts = self.namespaces[namespace]
        found = [mount for mount in mounts if path == mount or path.startswith(f"{mount}/")]
        if not found:
            raise VaultError(404, f'no handler for route "{path}". route entry not found.')
        mount = max(found, key=len)
        return mount, mounts[mount]


def _fits(pattern: str, path: str) -> bool:
    wanted, given = pattern.removesuffix("*").split("/"), path.split("/")
    if len(given) < len(wanted) or (len(given) > len(wanted) and not pattern.endswith("*")):
        return False
    *whole, last = zip(wanted, given, strict=False)
    fits_last = last[1].startswith(last[0]) if pattern.endswith("*") else last[0] in ("+", last[1])
    return fits_last and all(want in ("+", have) for want, have in whole)


class Api:
    """The endpoints."""

    def __init__(self, sandbox: VaultSandbox) -> None:
        self.sandbox = sandbox

    def permit(self, request: Request, path: str, capability: str) -> Token:
        """Authorize a request and return its token.

        Raises:
            VaultError: Vault is sealed, the token is invalid, or it lacks the capability.
        """
        self.unsealed()
        token = self.sandbox.token(request.headers.get("x-vault-token", ""))
        granted = self.sandbox.granted(token, path)
        if "deny" in granted or not granted & {"root", capability}:
            raise permission_denied()
        return token

    def unsealed(self) -> None:
        """Refuse the request if Vault is sealed.

        Raises:
            VaultError: Vault is sealed.
        """
        if self.sandbox.sealed:
            raise VaultError(503, "Vault is sealed")

    async def engine(self, request: Request) -> Response:
        """`/v1/{mount}/...`."""
        path = request.path_params["path"].strip("/")
        listing = request.method == "GET" and request.query_params.get("list") == "true"
        method = "LIST" if listing else request.method
        capability = CAPABILITY[method]
        if capability == "update" and not self._exists(request, path):
            capability = "create"
        self.permit(request, path, capability)
        mount, engine = self.sandbox.engine(_namespace(request), path)
        if method == "PATCH" and request.headers.get("content-type") != MERGE_PATCH:
            raise VaultError(415, f"PATCH requires Content-Type of {MERGE_PATCH}")
        body = await _body(request)
        answer = engine.handle(method, path.removeprefix(mount).strip("/"), body, dict(request.query_params))
        return Response(status_code=204) if answer is None else _answer(data=answer)

    def _exists(self, request: Request, path: str) -> bool:
        try:
            mount, engine = self.sandbox.engine(_namespace(request), path)
        except VaultError:
            return False
        return engine.exists(path.removeprefix(mount).strip("/"))

    async def login(self, request: Request) -> Response:
        """`/v1/auth/{mount}/login`."""
        self.unsealed()
        body = await _body(request)
        role = body.get("role_id") or body.get("role") or ""
        credential = body.get("secret_id") or body.get("jwt") or ""
        return _answer(auth=self.sandbox.log_in(request.path_params["mount"], role, credential))

    async def lookup_self(self, request: Request) -> Response:
        """`/v1/auth/token/lookup-self`."""
        token = self.permit(request, "auth/token/lookup-self", "read")
        lease = self.sandbox.lease(token)
        own = {"id": request.headers["x-vault-token"], "ttl": lease["lease_duration"], "expire_time": None}
        return _answer(data={**lease, **own, "expire_time": _text(token.expires) or None})

    async def renew_self(self, request: Request) -> Response:
        """`/v1/auth/token/renew-self`."""
        token = self.permit(request, "auth/token/renew-self", "update")
        if token.expires is None:
            raise VaultError(400, "lease is not renewable")
        token.expires = self.sandbox.now() + self.sandbox.token_ttl
        return _answer(auth={**self.sandbox.lease(token), "client_token": request.headers["x-vault-token"]})

    async def revoke_self(self, request: Request) -> Response:
        """`/v1/auth/token/revoke-self`."""
        self.permit(request, "auth/token/revoke-self", "update")
        del self.sandbox.tokens[request.headers["x-vault-token"]]
        return Response(status_code=204)

    async def capabilities_self(self, request: Request) -> Response:
        """`/v1/sys/capabilities-self`."""
        token = self.permit(request, "sys/capabilities-self", "update")
        paths = (await _body(request)).get("paths")
        if not paths:
            raise VaultError(400, "paths must be supplied")
        found: Json = {path: sorted(self.sandbox.granted(token, path)) or ["deny"] for path in paths}
        if len(paths) == 1:
            found["capabilities"] = found[paths[0]]
        return _answer(data=found, beside=found)

    async def mount(self, request: Request) -> Response:
        """`/v1/sys/internal/ui/mounts/{mount}`: for every token with a capability below the mount."""
        self.unsealed()
        token = self.sandbox.token(request.headers.get("x-vault-token", ""))
        path = request.path_params["mount"].strip("/")
        mounts = self.sandbox.namespaces.get(_namespace(request), {})
        allowed = any(
            pattern == "*" or pattern.startswith(f"{path}/") for pattern, granted in token.policy.items() if granted
        )
        if path not in mounts or not allowed:
            raise VaultError(
                403, "preflight capability check returned 403, please ensure client's policies grant access"
            )
        return _answer(data={"path": f"{path}/", "type": "kv", "options": {"version": mounts[path].version}})

    async def mounts(self, request: Request) -> Response:
        """`/v1/sys/mounts`."""
        self.permit(request, "sys/mounts", "read")
        mounts = self.sandbox.namespaces.get(_namespace(request), {})
        found = {f"{path}/": {"type": "kv", "options": {"version": mounts[path].version}} for path in mounts}
        return _answer(data=found, beside=found)

    async def health(self, request: Request) -> Response:
        """`/v1/sys/health`."""
        sealed = self.sandbox.sealed
        body = {"initialized": True, "sealed": sealed, "standby": sealed, "version": "stand-in"}
        return JSONResponse(body, int(request.query_params.get("sealedcode", 503)) if sealed else 200)

    async def seal_status(self, _request: Request) -> Response:
        """`/v1/sys/seal-status`."""
        body = {"type": "shamir", "initialized": True, "sealed": self.sandbox.sealed, "t": 1, "n": 1, "progress": 0}
        return JSONResponse(body)


def _namespace(request: Request) -> str:
    return request.headers.get("x-vault-namespace", "").strip("/")


async def _body(request: Request) -> Json:
    if not await request.body():
        return {}
    body = await request.json()
    if not isinstance(body, dict):
        raise VaultError(400, "failed to decode JSON input")
    return body


def _answer(
    *, data: Json | None = None, auth: Json | None = None, status: int = 200, beside: Json | None = None
) -> Response:
    envelope = {
        "request_id": secrets.token_hex(16),
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": data,
        "wrap_info": None,
        "warnings": None,
        "auth": auth,
    }
    return JSONResponse({**(beside or {}), **envelope}, status)


async def _answer_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, VaultError):
        raise error
    if error.data is not None:
        return _answer(data=error.data, status=error.status)
    return JSONResponse({"errors": error.errors}, error.status)


async def _answer_bad_json(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"errors": ["failed to decode JSON input"]}, 400)


def create_app(sandbox: VaultSandbox | None = None) -> Starlette:
    """Return the stand-in's application, with the given state or a new one."""
    api = Api(sandbox or VaultSandbox())
    writes = ["POST", "PUT"]
    routes = [
        Route("/v1/auth/token/lookup-self", api.lookup_self, methods=["GET"]),
        Route("/v1/auth/token/renew-self", api.renew_self, methods=writes),
        Route("/v1/auth/token/revoke-self", api.revoke_self, methods=writes),
        Route("/v1/auth/{mount:path}/login", api.login, methods=writes),
        Route("/v1/sys/health", api.health, methods=["GET", "HEAD"]),
        Route("/v1/sys/seal-status", api.seal_status, methods=["GET"]),
        Route("/v1/sys/capabilities-self", api.capabilities_self, methods=writes),
        Route("/v1/sys/internal/ui/mounts/{mount:path}", api.mount, methods=["GET"]),
        Route("/v1/sys/mounts", api.mounts, methods=["GET"]),
        Route("/v1/{path:path}", api.engine, methods=list(CAPABILITY)),
    ]
    app = make_app(routes, exception_handlers={VaultError: _answer_error, ValueError: _answer_bad_json})
    app.state.sandbox = api.sandbox
    return app


def main(port: int) -> None:
    """Run the stand-in in the foreground, on loopback."""
    serve(create_app(), port)
