"""The effects of each flow on the services, in order, so that tests can kill a run at each of them."""

from __future__ import annotations

from blocks.openrouter.lists import ListKind
from tests.e2e.processes import Effect

ROTATION = {
    "openrouter": [
        Effect("openrouter", "POST /keys$"),
        Effect("openrouter", "POST /assignments/keys"),
        Effect("openrouter", "GET /key$"),
        Effect("openrouter", "GET /keys/"),
        Effect("openrouter", "PATCH /keys/"),
        Effect("openrouter", "DELETE /keys/"),
    ],
    "vault": [
        Effect("vault", "GET /data/"),
        Effect("vault", "POST /data/"),
        Effect("vault", "PATCH /metadata/"),
    ],
    "infisical": [
        Effect("infisical", "GET /raw/"),
        Effect("infisical", "PATCH /raw/"),
    ],
    "prefect": [
        *(Effect("prefect", "POST /api/variables/$", number) for number in range(7)),
        Effect("prefect", "PATCH /api/block_documents/"),
        Effect("prefect", "POST /api/artifacts/"),
    ],
}
"""The effects of a rotation on each service, in order.

Its writes of the ledger are: the intent, the key's hash, the announced publication, the current key, the former key's
cap, its announced revocation, and its completed revocation.
"""
DESTINATIONS = {
    "openrouter": ["secret"],
    "vault": ["vault-secret", "secret"],
    "infisical": ["infisical-secret", "secret"],
    "prefect": ["vault-secret", "secret"],
}
"""The destinations of the rotation that is killed at an effect of a service."""
RETIREMENT = [
    Effect("prefect", "POST /api/variables/$"),
    Effect("openrouter", "{} /keys/"),
    Effect("prefect", "POST /api/variables/$", 1),
]
"""The effects of a retirement: it announces, disables or deletes, and records that."""
RESTORE = [
    Effect("prefect", "POST /api/variables/$"),
    Effect("openrouter", "PATCH /keys/"),
    Effect("vault", "POST /data/"),
    Effect("prefect", "POST /api/variables/$", 1),
]
"""The effects of a restore: it records the key's end, enables the key, publishes it, and makes it current."""
REMOVAL = [
    Effect("prefect", "DELETE /api/deployments/"),
    Effect("prefect", "POST /api/variables/$"),
    Effect("openrouter", "DELETE /keys/"),
    Effect("prefect", "POST /api/variables/$", 3),
]
"""The effects of a removal: it deletes the deployment, gives the keys up, revokes them, and closes the ledger."""
LISTS = [Effect("openrouter", f"PATCH /{kind.path}/", number) for number in (0, 1) for kind in ListKind]
"""The effects of a rotation without an overlap on lists that name its key: add the new one, remove the old one."""
