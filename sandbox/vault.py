"""A stand-in for Vault: KV versions 1 and 2, four auth methods, policies, sealing.

Source: Vault's API documentation (https://developer.hashicorp.com/vault/api-docs). If a `vault` or `bao` binary is on
PATH, the tests also run against that.
"""

from __future__ import annotations

import secrets

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.server import make_app
from sandbox.vault_engines import Json, VaultError, permission_denied, spelled_text
from sandbox.vault_tokens import Token, VaultSandbox

MERGE_PATCH = "application/merge-patch+json"
CAPABILITY = {"GET": "read", "LIST": "list", "POST": "update", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


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
        return _answer(data={**lease, **own, "expire_time": spelled_text(token.expires) or None})

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
        """`/v1/sys/internal/ui/mounts/{mount}`, for every token with a capability below the mount."""
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
