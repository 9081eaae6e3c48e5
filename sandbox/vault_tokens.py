"""The state of the Vault stand-in beside its engines: tokens, policies, logins, namespaces."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sandbox.vault_engines import Clock, Json, KvVersion1, KvVersion2, Policy, VaultError

ROOT_TOKEN = "root-token-of-the-local-stand-in"
DEFAULT_POLICY = ("auth/token/lookup-self", "auth/token/renew-self", "auth/token/revoke-self", "sys/capabilities-self")


@dataclass
class Token:
    """A token with its policy: path patterns and their capabilities."""

    policy: Policy
    expires: datetime | None = None
    accessor: str = field(default_factory=lambda: secrets.token_hex(8))
    default_policy: bool = True


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
        """Expire every token but the root token."""
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
