"""A stand-in of Infisical: universal auth and the raw secrets of projects, environments and folders.

After Infisical's API reference (https://infisical.com/docs/api-reference/overview/introduction).
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox.server import make_app

CLIENT_ID = "client-of-the-local-stand-in"
CLIENT_SECRET = "secret-of-the-local-stand-in"
PROJECT_ID = "00000000-0000-4000-8000-00000000c0de"
ERRORS = {400: "BadRequest", 401: "Unauthorized", 403: "PermissionDenied", 404: "NotFound"}


class InfisicalError(Exception):
    """An answer that is an error.

    Args:
        status: The HTTP status.
        message: Infisical's message.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class StoredSecret:
    """A secret with its versions and what users wrote beside it."""

    name: str
    values: list[str]
    comment: str = ""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class InfisicalSandbox:
    """The state of the stand-in; tests look into it and turn its switches.

    Args:
        now: The clock, UTC.
        token_ttl: How long a token lives.
    """

    def __init__(
        self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), token_ttl: timedelta = timedelta(hours=2)
    ) -> None:
        self.now = now
        self.token_ttl = token_ttl
        self.identities = {CLIENT_ID: CLIENT_SECRET}
        self.read_only: set[str] = set()
        self.strangers: set[str] = set()
        self.tokens: dict[str, tuple[str, datetime]] = {}
        self.folders: dict[tuple[str, str, str], dict[str, StoredSecret]] = {
            (PROJECT_ID, environment, path): {} for environment in ("dev", "prod") for path in ("/", "/apps/checkout")
        }

    def put(self, name: str, value: str, *, environment: str = "prod", path: str = "/", comment: str = "") -> None:
        """Store a secret as a user would.

        Args:
            name: Its name.
            value: Its value.
            environment: The environment.
            path: The folder.
            comment: A comment.
        """
        self.folders[PROJECT_ID, environment, path][name] = StoredSecret(name, [value], comment)

    def end_tokens(self) -> None:
        """End every token, as when their time is over."""
        self.tokens.clear()


class Api:
    """The endpoints.

    Args:
        sandbox: The state.
    """

    def __init__(self, sandbox: InfisicalSandbox) -> None:
        self.sandbox = sandbox

    async def login(self, request: Request) -> Response:
        """`POST /api/v1/auth/universal-auth/login`."""
        body = await request.json()
        expected = self.sandbox.identities.get(str(body.get("clientId")))
        if expected is None or expected != body.get("clientSecret"):
            raise InfisicalError(401, "Invalid credentials")
        token = secrets.token_urlsafe(24)
        self.sandbox.tokens[token] = (body["clientId"], self.sandbox.now() + self.sandbox.token_ttl)
        seconds = int(self.sandbox.token_ttl.total_seconds())
        return JSONResponse(
            {"accessToken": token, "expiresIn": seconds, "accessTokenMaxTTL": seconds * 10, "tokenType": "Bearer"}
        )

    def _identity(self, request: Request, *, write: bool) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        identity, ends = self.sandbox.tokens.get(token, ("", self.sandbox.now()))
        if not identity or ends <= self.sandbox.now():
            raise InfisicalError(401, "Token missing or expired")
        if identity in self.sandbox.strangers or (write and identity in self.sandbox.read_only):
            raise InfisicalError(403, "You are not allowed to perform this action on secrets")

    def _folder(self, where: Any, request: Request, *, write: bool) -> tuple[str, str, dict[str, StoredSecret]]:
        self._identity(request, write=write)
        project, environment, path = (str(where.get(n, "")) for n in ("workspaceId", "environment", "secretPath"))
        folder = self.sandbox.folders.get((project, environment, path or "/"))
        if folder is None:
            raise InfisicalError(404, f"Folder with path '{path}' in environment with slug '{environment}' not found")
        return environment, path or "/", folder

    @staticmethod
    def _secret(request: Request, folder: dict[str, StoredSecret]) -> StoredSecret:
        secret = folder.get(request.path_params["name"])
        if secret is None:
            raise InfisicalError(404, f"Secret with name '{request.path_params['name']}' not found")
        return secret

    @staticmethod
    def _show(secret: StoredSecret, environment: str, path: str, value: str | None = None) -> dict[str, Any]:
        return {
            "id": secret.id,
            "_id": secret.id,
            "workspace": PROJECT_ID,
            "environment": environment,
            "version": len(secret.values),
            "type": "shared",
            "secretKey": secret.name,
            "secretValue": secret.values[-1] if value is None else value,
            "secretComment": secret.comment,
            "secretMetadata": secret.metadata,
            "secretPath": path,
            "tags": [],
            "createdAt": "2026-01-01T00:00:00.000Z",
            "updatedAt": "2026-01-01T00:00:00.000Z",
        }

    async def list(self, request: Request) -> Response:
        """`GET /api/v3/secrets/raw`."""
        environment, path, folder = self._folder(request.query_params, request, write=False)
        hidden = request.query_params.get("viewSecretValue") == "false"
        shown = [self._show(s, environment, path, "<hidden-by-infisical>" if hidden else None) for s in folder.values()]
        return JSONResponse({"secrets": shown, "imports": []})

    async def get(self, request: Request) -> Response:
        """`GET /api/v3/secrets/raw/{name}`."""
        environment, path, folder = self._folder(request.query_params, request, write=False)
        return JSONResponse({"secret": self._show(self._secret(request, folder), environment, path)})

    async def create(self, request: Request) -> Response:
        """`POST /api/v3/secrets/raw/{name}`."""
        body, name = await request.json(), request.path_params["name"]
        environment, path, folder = self._folder(body, request, write=True)
        if name in folder:
            raise InfisicalError(400, "Secret already exist")
        folder[name] = StoredSecret(name, [body.get("secretValue", "")], body.get("secretComment", ""))
        return JSONResponse({"secret": self._show(folder[name], environment, path)})

    async def update(self, request: Request) -> Response:
        """`PATCH /api/v3/secrets/raw/{name}`."""
        body = await request.json()
        environment, path, folder = self._folder(body, request, write=True)
        secret = self._secret(request, folder)
        if "secretValue" in body:
            secret.values.append(body["secretValue"])
        secret.comment = body.get("secretComment", secret.comment)
        secret.metadata = body.get("secretMetadata", secret.metadata)
        return JSONResponse({"secret": self._show(secret, environment, path)})

    async def delete(self, request: Request) -> Response:
        """`DELETE /api/v3/secrets/raw/{name}`."""
        environment, path, folder = self._folder(await request.json(), request, write=True)
        secret = self._secret(request, folder)
        del folder[secret.name]
        return JSONResponse({"secret": self._show(secret, environment, path)})


async def _answer_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, InfisicalError):
        raise error
    body = {"reqId": "req-0", "statusCode": error.status, "message": error.message, "error": ERRORS[error.status]}
    return JSONResponse(body, error.status)


def create_app(sandbox: InfisicalSandbox | None = None) -> Starlette:
    """Make the stand-in's application.

    Args:
        sandbox: Its state; a new one by default.

    Returns:
        The application.
    """
    api = Api(sandbox or InfisicalSandbox())
    one = "/api/v3/secrets/raw/{name}"
    routes = [
        Route("/api/v1/auth/universal-auth/login", api.login, methods=["POST"]),
        Route("/api/v3/secrets/raw", api.list, methods=["GET"]),
        Route(one, api.get, methods=["GET"]),
        Route(one, api.create, methods=["POST"]),
        Route(one, api.update, methods=["PATCH"]),
        Route(one, api.delete, methods=["DELETE"]),
    ]
    app = make_app(routes, exception_handlers={InfisicalError: _answer_error})
    app.state.sandbox = api.sandbox
    return app
