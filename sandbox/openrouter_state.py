"""The state of the OpenRouter stand-in beside accounts and keys: lists of keys, budgets, missing parts."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

PARTS = ("workspaces", "guardrails", "byok", "observability", "analytics")
"""The parts of the API that an account may lack, by the first segment of their paths."""


class AccountLists:
    """The state of these parts' endpoints; `OpenRouterSandbox` adds keys and accounts.

    Args:
        now: The clock, UTC.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.lacks: dict[str, int] = {}
        """The parts that the accounts lack, with the status of their responses."""
        self.unknown_workspace_status: int | None = None
        """The status for listing the keys of an unknown workspace; `None` returns an empty list."""
        self.list_lag = timedelta(0)
        """How long lists refuse a new key with 400."""
        self.credentials: dict[str, dict[str, Any]] = {}
        self.broadcasts: dict[str, dict[str, Any]] = {}
        self.workspace_settings: dict[str, dict[str, Any]] = {}
        self.budgets: dict[str, dict[str, Decimal]] = {}
        self.byok_in_budgets: dict[str, bool] = {}

    def add_credential(self, account: Any, workspace: str | None, **fields: Any) -> dict[str, Any]:
        """Add a BYOK credential; without a workspace, it applies to all of them."""
        credential = {
            "account": account,
            "id": str(uuid.uuid4()),
            "workspace_id": workspace,
            "name": None,
            "provider": "openai",
            "label": "sk-...AbCd",
            "disabled": False,
            "is_fallback": False,
            "allowed_models": None,
            "allowed_api_key_hashes": None,
            "allowed_user_ids": None,
            "sort_order": len(self.credentials),
            "created_at": f"{self.now():%Y-%m-%dT%H:%M:%S}Z",
            # Required by the SDK, absent from the API reference.
            "declared_region": None,
            "declared_zdr": None,
            "is_byok_only": False,
            "is_required": False,
            **fields,
        }
        self.credentials[credential["id"]] = credential
        return credential

    def add_broadcast(self, account: Any, workspace: str, **fields: Any) -> dict[str, Any]:
        """Add a broadcast destination."""
        at = f"{self.now():%Y-%m-%dT%H:%M:%S}Z"
        broadcast = {
            "account": account,
            "id": str(uuid.uuid4()),
            "workspace_id": workspace,
            "name": None,
            "type": "webhook",
            "config": {"url": "https://tracing.example"},
            "enabled": True,
            "privacy_mode": False,
            "broadcast_generation_cost": False,
            "broadcast_generation_identity": False,
            "broadcast_generation_request_context": False,
            "sampling_rate": 1,
            "api_key_hashes": None,
            "filter_rules": None,
            "created_at": at,
            "updated_at": at,
            # Required by the SDK, absent from the API reference.
            "broadcast_generation_cost_allocation": False,
            "regions": [],
            **fields,
        }
        self.broadcasts[broadcast["id"]] = broadcast
        return broadcast

    def serves(self, credential_id: str, key_hash: str, workspace: str) -> bool:
        """Return whether a key of a workspace may use a BYOK credential."""
        credential = self.credentials.get(credential_id)
        if credential is None or credential["disabled"] or credential["workspace_id"] not in (None, workspace):
            return False
        allowed = credential["allowed_api_key_hashes"]
        return allowed is None or key_hash in allowed

    def counts_byok(self, workspace: str) -> bool:
        """Return whether spending on the account's own provider keys counts towards a workspace's budgets."""
        return self.byok_in_budgets.get(workspace, False)


def parse_lacks(value: Any) -> dict[str, int]:
    """Parse the parts that the accounts lack, each with the status of its responses: 403 or 404.

    Raises:
        ValueError: A part or a status is invalid.
    """
    lacks = {str(part): int(status) for part, status in value.items()}
    if not set(lacks) <= set(PARTS) or not set(lacks.values()) <= {403, 404}:
        raise ValueError("not a part, or not a status")
    return lacks
