"""A stand-in of Vault for machines without one: KV version 2, four ways to log in, policies, sealing.

After Vault's API documentation (https://developer.hashicorp.com/vault/api-docs). Where a `vault` or `bao` binary is on
PATH the tests run against that one as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.server import make_app

ROOT_TOKEN = "root-token-of-the-local-stand-in"
MAX_VERSIONS = 10
CAPABILITY = {"GET": "read", "POST": "update", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class VaultError(Exception):
    """An answer that is an error.

    Args:
        status: The HTTP status.
        errors: Vault's messages.
    """

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(*errors)
        self.status, self.errors = status, list(errors)


@dataclass
class Version:
    """One version of a secret."""

    number: int
    data: dict[str, Any] | None
    created: datetime
    deleted: datetime | None = None


@dataclass
class SecretRecord:
    """A path of the KV engine."""

    versions: list[Version] = field(default_factory=list)
    current: int = 0
    custom_metadata: dict[str, str] | None = None
    max_versions: int = 0


@dataclass
class Token:
    """A token and what it may do: path patterns to capabilities."""

    policy: dict[str, set[str]]
    expires: datetime | None = None


def _ns(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class VaultSandbox:
    """The state of the stand-in; tests look into it and turn its switches.

    Args:
        now: The clock, UTC.
        token_ttl: How long a token from a login lives.
    """

    def __init__(
        self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), token_ttl: timedelta = timedelta(hours=1)
    ) -> None:
        self.now = now
        self.token_ttl = token_ttl
        self.sealed = False
        self.mounts = {"secret": "2"}
        self.secrets: dict[tuple[str, str, str], SecretRecord] = {}
        self.tokens = {ROOT_TOKEN: Token({"*": {"root"}})}
        self.logins: dict[tuple[str, str, str], dict[str, set[str]]] = {}
        self.namespaces = {""}

    def allow_login(self, mount: str, role: str, credential: str, policy: dict[str, set[str]] | None = None) -> None:
        """Let a machine log in.

        Args:
            mount: The auth method's mount: `approle`, `kubernetes` or `jwt`, or another name.
            role: The role, or role id.
            credential: The secret id or JWT.
            policy: What the token may do; everything by default.
        """
        self.logins[mount, role, credential] = policy or {"*": {"root"}}

    def end_tokens(self) -> None:
        """End every token but the root token, as when their time is over."""
        self.tokens = {name: token for name, token in self.tokens.items() if name == ROOT_TOKEN}

    def log_in(self, mount: str, role: str, credential: str) -> dict[str, Any]:
        """Log a machine in.

        Returns:
            The answer's `auth` part.

        Raises:
            VaultError: The credential is wrong.
        """
        policy = self.logins.get((mount, role, credential))
        if policy is None:
            raise VaultError(400, "invalid role or secret ID")
        token = f"hvs.{secrets.token_urlsafe(24)}"
        self.tokens[token] = Token(policy, self.now() + self.token_ttl)
        return {
            "client_token": token,
            "accessor": secrets.token_hex(8),
            "policies": ["default"],
            "token_policies": ["default"],
            "lease_duration": int(self.token_ttl.total_seconds()),
            "renewable": True,
        }

    def token(self, request: Request) -> Token:
        """Find the token of a request.

        Raises:
            VaultError: Vault is sealed, or the token is wrong or over.
        """
        if self.sealed:
            raise VaultError(503, "Vault is sealed")
        token = self.tokens.get(request.headers.get("x-vault-token", ""))
        if token is None or (token.expires is not None and token.expires <= self.now()):
            raise VaultError(403, "permission denied")
        if request.headers.get("x-vault-namespace", "").strip("/") not in self.namespaces:
            raise VaultError(404, "no handler for route")
        return token

    def granted(self, token: Token, path: str) -> set[str]:
        """Say what a token may do at a path.

        Returns:
            The capabilities.
        """
        found = [capabilities for pattern, capabilities in token.policy.items() if fnmatchcase(path, pattern)]
        return set().union(*found) if found else set()

    def permit(self, request: Request, path: str, *capabilities: str) -> None:
        """Let a request pass, or not.

        Raises:
            VaultError: The token does not have the capability.
        """
        granted = self.granted(self.token(request), path)
        if "root" not in granted and not granted & set(capabilities):
            raise VaultError(403, "1 error occurred:\n\t* permission denied\n\n")


class Api:
    """The endpoints.

    Args:
        sandbox: The state.
    """

    def __init__(self, sandbox: VaultSandbox) -> None:
        self.sandbox = sandbox

    def _record(self, request: Request, *, make: bool = False) -> SecretRecord:
        mount, path = request.path_params["mount"], request.path_params["path"]
        if self.sandbox.mounts.get(mount) != "2":
            raise VaultError(404, f'no handler for route "{mount}/{path}". route entry not found.')
        key = (request.headers.get("x-vault-namespace", "").strip("/"), mount, path)
        record = self.sandbox.secrets.get(key)
        if record is None and make:
            record = self.sandbox.secrets[key] = SecretRecord()
        if record is None:
            raise VaultError(404)
        return record

    def _permit(self, request: Request, kind: str, *capabilities: str) -> None:
        path = f"{request.path_params['mount']}/{kind}/{request.path_params['path']}"
        self.sandbox.permit(request, path, *capabilities)

    async def data(self, request: Request) -> Response:
        """`/v1/{mount}/data/{path}`."""
        exists = self._exists(request)
        capability = CAPABILITY[request.method]
        self._permit(request, "data", "create" if capability == "update" and not exists else capability)
        match request.method:
            case "GET":
                return self._read(request)
            case "DELETE":
                self._latest(self._record(request)).deleted = self.sandbox.now()
                return Response(status_code=204)
            case _:
                return await self._write(request)

    def _exists(self, request: Request) -> bool:
        self.sandbox.token(request)
        try:
            self._record(request)
        except VaultError:
            return False
        return True

    @staticmethod
    def _latest(record: SecretRecord) -> Version:
        if not record.versions:
            raise VaultError(404)
        return record.versions[-1]

    def _read(self, request: Request) -> Response:
        record = self._record(request)
        wanted = int(request.query_params.get("version", 0)) or record.current
        version = next((v for v in record.versions if v.number == wanted), None)
        if version is None:
            raise VaultError(404)
        gone = version.deleted is not None or version.data is None
        body = {"data": None if gone else version.data, "metadata": self._version_metadata(record, version)}
        return JSONResponse({"request_id": secrets.token_hex(8), "data": body}, 404 if gone else 200)

    @staticmethod
    def _version_metadata(record: SecretRecord, version: Version) -> dict[str, Any]:
        return {
            "version": version.number,
            "created_time": _ns(version.created),
            "deletion_time": _ns(version.deleted),
            "destroyed": version.data is None,
            "custom_metadata": record.custom_metadata,
        }

    async def _write(self, request: Request) -> Response:
        body = await request.json()
        record = self._record(request, make=request.method != "PATCH")
        cas = body.get("options", {}).get("cas")
        if cas is not None and int(cas) != record.current:
            raise VaultError(400, "check-and-set parameter did not match the current version")
        data = dict(body["data"])
        if request.method == "PATCH":
            data = {k: v for k, v in {**(self._latest(record).data or {}), **data}.items() if v is not None}
        record.current += 1
        version = Version(record.current, data, self.sandbox.now())
        record.versions = [*record.versions, version][-(record.max_versions or MAX_VERSIONS) :]
        return JSONResponse({"data": self._version_metadata(record, version)})

    async def metadata(self, request: Request) -> Response:
        """`/v1/{mount}/metadata/{path}`."""
        self._permit(request, "metadata", CAPABILITY[request.method], "create" if request.method == "POST" else "")
        if request.method == "DELETE":
            self._record(request)
            namespace = request.headers.get("x-vault-namespace", "").strip("/")
            del self.sandbox.secrets[namespace, request.path_params["mount"], request.path_params["path"]]
            return Response(status_code=204)
        if request.method == "GET":
            return JSONResponse({"data": self._metadata(self._record(request))})
        record, body = self._record(request, make=True), await request.json()
        if "custom_metadata" in body:
            kept = record.custom_metadata or {} if request.method == "PATCH" else {}
            record.custom_metadata = {**kept, **body["custom_metadata"]}
        record.max_versions = int(body.get("max_versions", record.max_versions))
        return Response(status_code=204)

    def _metadata(self, record: SecretRecord) -> dict[str, Any]:
        return {
            "current_version": record.current,
            "oldest_version": record.versions[0].number if record.versions else 0,
            "custom_metadata": record.custom_metadata,
            "max_versions": record.max_versions,
            "versions": {str(v.number): self._version_metadata(record, v) for v in record.versions},
        }

    async def versions(self, request: Request) -> Response:
        """`/v1/{mount}/{delete|undelete|destroy}/{path}`."""
        self._permit(request, request.path_params["verb"], "update")
        wanted = set((await request.json())["versions"])
        for version in self._record(request).versions:
            if version.number in wanted:
                self._change(version, request.path_params["verb"])
        return Response(status_code=204)

    def _change(self, version: Version, verb: str) -> None:
        if verb == "destroy":
            version.data = None
        else:
            version.deleted = self.sandbox.now() if verb == "delete" else None

    async def login(self, request: Request) -> Response:
        """`/v1/auth/{mount}/login`."""
        if self.sandbox.sealed:
            raise VaultError(503, "Vault is sealed")
        body = await request.json()
        role = body.get("role_id") or body.get("role") or ""
        auth = self.sandbox.log_in(request.path_params["mount"], role, body.get("secret_id") or body.get("jwt") or "")
        return JSONResponse({"auth": auth})

    async def lookup_self(self, request: Request) -> Response:
        """`/v1/auth/token/lookup-self`."""
        token = self.sandbox.token(request)
        left = int((token.expires - self.sandbox.now()).total_seconds()) if token.expires else 0
        return JSONResponse({"data": {"ttl": left, "policies": ["default"], "renewable": token.expires is not None}})

    async def renew_self(self, request: Request) -> Response:
        """`/v1/auth/token/renew-self`."""
        token = self.sandbox.token(request)
        if token.expires is not None:
            token.expires = self.sandbox.now() + self.sandbox.token_ttl
        lease = int(self.sandbox.token_ttl.total_seconds())
        return JSONResponse({"auth": {"lease_duration": lease, "renewable": True}})

    async def capabilities_self(self, request: Request) -> Response:
        """`/v1/sys/capabilities-self`."""
        token = self.sandbox.token(request)
        paths = (await request.json())["paths"]
        found = {path: sorted(self.sandbox.granted(token, path)) or ["deny"] for path in paths}
        return JSONResponse({**found, "data": found})

    async def mount(self, request: Request) -> Response:
        """`/v1/sys/internal/ui/mounts/{mount}`."""
        self.sandbox.token(request)
        version = self.sandbox.mounts.get(request.path_params["mount"])
        if version is None:
            raise VaultError(
                403, "preflight capability check returned 403, please ensure client's policies grant access"
            )
        return JSONResponse({"data": {"type": "kv", "options": {"version": version}}})

    async def health(self, _request: Request) -> Response:
        """`/v1/sys/health`."""
        sealed = self.sandbox.sealed
        body = {"initialized": True, "sealed": sealed, "standby": False, "version": "stand-in"}
        return JSONResponse(body, 503 if sealed else 200)

    async def seal_status(self, _request: Request) -> Response:
        """`/v1/sys/seal-status`."""
        return JSONResponse({"type": "shamir", "initialized": True, "sealed": self.sandbox.sealed, "t": 1, "n": 1})


async def _answer_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, VaultError):
        raise error
    return JSONResponse({"errors": error.errors}, error.status)


def create_app(sandbox: VaultSandbox | None = None) -> Starlette:
    """Make the stand-in's application.

    Args:
        sandbox: Its state; a new one by default.

    Returns:
        The application.
    """
    api = Api(sandbox or VaultSandbox())
    writes = ["POST", "PUT"]
    routes = [
        Route("/v1/auth/token/lookup-self", api.lookup_self, methods=["GET"]),
        Route("/v1/auth/token/renew-self", api.renew_self, methods=writes),
        Route("/v1/auth/{mount:path}/login", api.login, methods=writes),
        Route("/v1/sys/health", api.health, methods=["GET", "HEAD"]),
        Route("/v1/sys/seal-status", api.seal_status, methods=["GET"]),
        Route("/v1/sys/capabilities-self", api.capabilities_self, methods=writes),
        Route("/v1/sys/internal/ui/mounts/{mount:path}", api.mount, methods=["GET"]),
        Route("/v1/{mount}/data/{path:path}", api.data, methods=["GET", "DELETE", "PATCH", *writes]),
        Route("/v1/{mount}/metadata/{path:path}", api.metadata, methods=["GET", "DELETE", "PATCH", *writes]),
        Route("/v1/{mount}/{verb}/{path:path}", api.versions, methods=writes),
    ]
    app = make_app(routes, exception_handlers={VaultError: _answer_error})
    app.state.sandbox = api.sandbox
    return app
