"""A stand-in for Infisical: universal auth, and the raw secrets of projects, environments and folders.

Sources: Infisical's API reference (https://infisical.com/docs/api-reference/overview/introduction); for error names and
messages, and for the empty list of a missing folder, its server (https://github.com/Infisical/infisical).
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
ERRORS = {
    400: "BadRequest",
    401: "UnauthorizedError",
    403: "PermissionDenied",
    404: "NotFound",
    422: "ValidationFailure",
}
HIDDEN = "<hidden-by-infisical>"


class InfisicalError(Exception):
    """An error response.

    Args:
        status: The HTTP status.
        message: Infisical's message.
        name: Infisical's name for the error; the usual one of the status by default.
    """

    def __init__(self, status: int, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.name = status, message, name or ERRORS[status]


@dataclass
class StoredSecret:
    """A secret with its versions, comment and metadata."""

    name: str
    values: list[str]
    comment: str = ""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class InfisicalSandbox:
    """The state of the stand-in, which tests read and change.

    Args:
        now: The clock, UTC.
        token_ttl: The lifetime of a token; zero for one that does not expire.
    """

    def __init__(
        self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC), token_ttl: timedelta = timedelta(hours=2)
    ) -> None:
        self.now = now
        self.token_ttl = token_ttl
        self.identities = {CLIENT_ID: CLIENT_SECRET}
        self.read_only: set[str] = set()
        self.strangers: set[str] = set()
        self.approvals: set[str] = set()
        self.tokens: dict[str, tuple[str, datetime]] = {}
        self.folders: dict[tuple[str, str, str], dict[str, StoredSecret]] = {
            (PROJECT_ID, environment, path): {} for environment in ("dev", "prod") for path in ("/", "/apps/checkout")
        }

    def put(self, name: str, value: str, *, environment: str = "prod", path: str = "/", comment: str = "") -> None:
        """Store a secret as a user would."""
        self.folders[PROJECT_ID, environment, path][name] = StoredSecret(name, [value], comment)

    def add_folder(self, environment: str, path: str = "/", *, project: str = PROJECT_ID) -> None:
        """Create an empty folder, with its project and environment if necessary."""
        self.folders.setdefault((project, environment, path), {})

    def end_tokens(self) -> None:
        """Expire every token."""
        self.tokens = {token: (identity, self.now()) for token, (identity, _) in self.tokens.items()}

    def revoke_tokens(self) -> None:
        """Revoke every token."""
        self.tokens.clear()


class Api:
    """The endpoints."""

    def __init__(self, sandbox: InfisicalSandbox) -> None:
        self.sandbox = sandbox

    async def login(self, request: Request) -> Response:
        """`POST /api/v1/auth/universal-auth/login`."""
        body = await request.json()
        expected = self.sandbox.identities.get(str(body.get("clientId")))
        if expected is None or expected != body.get("clientSecret"):
            raise InfisicalError(401, "Invalid credentials")
        token = secrets.token_urlsafe(24)
        lives = self.sandbox.token_ttl
        ends = self.sandbox.now() + lives if lives else datetime.max.replace(tzinfo=UTC)
        self.sandbox.tokens[token] = (body["clientId"], ends)
        seconds = int(lives.total_seconds())
        return JSONResponse(
            {"accessToken": token, "expiresIn": seconds, "accessTokenMaxTTL": seconds * 10, "tokenType": "Bearer"}
        )

    def _identity(self, request: Request, project: str, *, write: bool) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.sandbox.tokens:
            raise InfisicalError(401, "No identity access token found")
        identity, ends = self.sandbox.tokens[token]
        if ends <= self.sandbox.now():
            raise InfisicalError(403, "Your token has expired. Please re-authenticate.", "TokenError")
        if not any(project == known for known, _, _ in self.sandbox.folders):
            raise InfisicalError(404, f"Project with {project} not found")
        if identity in self.sandbox.strangers:
            message = f"You are not a member of this project with ID {project}."
            raise InfisicalError(403, message, "ProjectMembershipNotFound")
        if write and identity in self.sandbox.read_only:
            raise InfisicalError(403, "You are not allowed to edit on secrets")

    def _place(self, where: Any, request: Request, *, write: bool) -> tuple[str, str, str]:
        project, environment, path = (str(where.get(n, "")) for n in ("workspaceId", "environment", "secretPath"))
        self._identity(request, project, write=write)
        return project, environment, path.rstrip("/") or "/"

    def _folder(self, place: tuple[str, str, str]) -> dict[str, StoredSecret]:
        folder = self.sandbox.folders.get(place)
        if folder is None:
            _, environment, path = place
            message = f"Folder with path '{path}' in environment with slug '{environment}' not found"
            raise InfisicalError(404, message, "GetSecretByName")
        return folder

    @staticmethod
    def _secret(request: Request, folder: dict[str, StoredSecret]) -> StoredSecret:
        secret = folder.get(request.path_params["name"])
        if secret is None:
            raise InfisicalError(404, f"Secret with name '{request.path_params['name']}' not found")
        return secret

    @staticmethod
    def _show(secret: StoredSecret, place: tuple[str, str, str], *, hidden: bool = False) -> dict[str, Any]:
        project, environment, path = place
        return {
            "id": secret.id,
            "_id": secret.id,
            "workspace": project,
            "environment": environment,
            "version": len(secret.values),
            "type": "shared",
            "secretKey": secret.name,
            "secretValue": HIDDEN if hidden else secret.values[-1],
            "secretValueHidden": hidden,
            "secretComment": secret.comment,
            "secretMetadata": secret.metadata,
            "secretPath": path,
            "tags": [],
            "createdAt": "2026-01-01T00:00:00.000Z",
            "updatedAt": "2026-01-01T00:00:00.000Z",
        }

    @staticmethod
    def _hidden(request: Request) -> bool:
        return request.query_params.get("viewSecretValue") == "false"

    async def list(self, request: Request) -> Response:
        """`GET /api/v3/secrets/raw`; a missing folder returns an empty list, as the real server does."""
        place = self._place(request.query_params, request, write=False)
        stored = self.sandbox.folders.get(place, {}).values()
        shown = [self._show(secret, place, hidden=self._hidden(request)) for secret in stored]
        return JSONResponse({"secrets": shown, "imports": []})

    async def get(self, request: Request) -> Response:
        """`GET /api/v3/secrets/raw/{name}`."""
        place = self._place(request.query_params, request, write=False)
        secret = self._secret(request, self._folder(place))
        return JSONResponse({"secret": self._show(secret, place, hidden=self._hidden(request))})

    async def create(self, request: Request) -> Response:
        """`POST /api/v3/secrets/raw/{name}`."""
        body, name = await request.json(), request.path_params["name"]
        place = self._place(body, request, write=True)
        folder = self._folder(place)
        if ":" in name:
            raise InfisicalError(422, "Secret name cannot contain colon or forward slash.")
        if name in folder:
            raise InfisicalError(400, f"Secret already exists: {name}")
        if place[1] in self.sandbox.approvals:
            return self._approval()
        value, comment = body["secretValue"].strip(), body.get("secretComment", "")
        folder[name] = StoredSecret(name, [value], comment, body.get("secretMetadata", []))
        return JSONResponse({"secret": self._show(folder[name], place)})

    async def update(self, request: Request) -> Response:
        """`PATCH /api/v3/secrets/raw/{name}`."""
        body = await request.json()
        place = self._place(body, request, write=True)
        secret = self._secret(request, self._folder(place))
        if place[1] in self.sandbox.approvals:
            return self._approval()
        if "secretValue" in body:
            secret.values.append(body["secretValue"].strip())
        secret.comment = body.get("secretComment", secret.comment)
        secret.metadata = body.get("secretMetadata", secret.metadata)
        return JSONResponse({"secret": self._show(secret, place)})

    @staticmethod
    def _approval() -> Response:
        return JSONResponse({"approval": {"id": str(uuid.uuid4()), "status": "open", "hasMerged": False}})

    async def delete(self, request: Request) -> Response:
        """`DELETE /api/v3/secrets/raw/{name}`."""
        place = self._place(await request.json(), request, write=True)
        folder = self._folder(place)
        secret = self._secret(request, folder)
        del folder[secret.name]
        return JSONResponse({"secret": self._show(secret, place)})


async def _answer_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, InfisicalError):
        raise error
    body = {"reqId": "req-0", "statusCode": error.status, "message": error.message, "error": error.name}
    return JSONResponse(body, error.status)


def create_app(sandbox: InfisicalSandbox | None = None) -> Starlette:
    """Return the stand-in's application, with the given state or a new one."""
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
