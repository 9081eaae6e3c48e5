"""What each flow does to the services, effect by effect, so that tests can kill it at each."""

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
"""What a rotation does to each service, in turn.

In the ledger it writes the intent, the key's hash, that it is about to be published, the current key, that the former
one can spend no more, that this is about to be revoked, and that it was.
"""
DESTINATIONS = {
    "openrouter": ["secret"],
    "vault": ["vault-secret", "secret"],
    "infisical": ["infisical-secret", "secret"],
    "prefect": ["vault-secret", "secret"],
}
"""Where the rotation publishes to that dies at one of a service's effects."""
RETIREMENT = [
    Effect("prefect", "POST /api/variables/$"),
    Effect("openrouter", "{} /keys/"),
    Effect("prefect", "POST /api/variables/$", 1),
]
"""What a retirement does: it announces, disables or deletes, and writes down that it has."""
RESTORE = [
    Effect("prefect", "POST /api/variables/$"),
    Effect("openrouter", "PATCH /keys/"),
    Effect("vault", "POST /data/"),
    Effect("prefect", "POST /api/variables/$", 1),
]
"""What bringing a key back does: it says until when, enables the key, publishes it, and writes it down as current."""
REMOVAL = [
    Effect("prefect", "DELETE /api/deployments/"),
    Effect("prefect", "POST /api/variables/$"),
    Effect("openrouter", "DELETE /keys/"),
    Effect("prefect", "POST /api/variables/$", 3),
]
"""What a removal does: away with the deployment, the keys are given up, revoked, and the ledger is closed."""
LISTS = [Effect("openrouter", f"PATCH /{kind.path}/", number) for number in (0, 1) for kind in ListKind]
"""What a rotation without an overlap does to the lists that name its key: adds the new one, takes the old one out."""
