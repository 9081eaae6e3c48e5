"""The KV secrets engines of the Vault stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MAX_VERSIONS = 10
MAX_CUSTOM_KEYS = 64
MAX_CUSTOM_KEY_BYTES = 128
MAX_CUSTOM_VALUE_BYTES = 512

Json = dict[str, Any]
Policy = dict[str, set[str]]
Clock = Callable[[], datetime]


class VaultError(Exception):
    """An error response.

    Args:
        status: The HTTP status.
        errors: Vault's messages.
        data: The response's `data`, if Vault includes it in the error.
    """

    def __init__(self, status: int, *errors: str, data: Json | None = None) -> None:
        super().__init__(*errors)
        self.status, self.errors, self.data = status, list(errors), data


def permission_denied() -> VaultError:
    """Return the error for a missing capability; for an unknown token, Vault says `permission denied` only."""
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
        """Whether a read returns 404."""
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


def spelled_text(moment: datetime | None) -> str:
    """Return a time as Vault writes it."""
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
            "created_time": spelled_text(version.created),
            "deletion_time": spelled_text(version.deleted),
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
        """Write a version that is a merge patch of the current one, and return its metadata.

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
            "created_time": spelled_text(record.created),
            "current_version": record.current,
            "custom_metadata": record.custom_metadata,
            "delete_version_after": record.delete_version_after,
            "max_versions": record.max_versions,
            "oldest_version": min(record.versions, default=0),
            "updated_time": spelled_text(record.updated),
            "versions": {str(number): self._described(record, number, custom=False) for number in record.versions},
        }
