"""Search for secrets in everything that Prefect stores."""

from __future__ import annotations

import base64
import sqlite3
import subprocess

from sandbox import infisical
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY
from sandbox.postgres import PROGRAMS
from sandbox.stack import Stack
from sandbox.vault_tokens import ROOT_TOKEN
from tests.e2e.conftest import Services


def everything_stored(stack: Stack) -> bytes:
    """Return all files of the server, the workers and the runs, and all rows of the database."""
    files = b"\n".join(file.read_bytes() for file in stack.home.rglob("*") if file.is_file())
    return files + rows_of(stack)


def rows_of(stack: Stack) -> bytes:
    """Return all rows of a server's database, as SQL."""
    _, is_postgresql, address = stack.env.get("PREFECT_SERVER_DATABASE_CONNECTION_URL", "").partition("+asyncpg://")
    if is_postgresql:
        command = [f"{PROGRAMS}/pg_dump", f"postgresql://{address}"]
        return subprocess.run(command, check=True, capture_output=True).stdout
    with sqlite3.connect(f"file:{stack.database}?mode=ro", uri=True) as database:
        return "\n".join(database.iterdump()).encode()


def spellings(secret: str) -> list[bytes]:
    """Return the encodings of a secret to search for: plain, and base64 at each of the three alignments."""
    found = [secret.encode()]
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + secret.encode())
        found.append(encoded[4:-4])
    return found


def leaks(services: Services) -> list[str]:
    """Return the beginning of each secret of these services that is stored outside of blocks."""
    secrets = {
        *services.openrouter.secrets,
        DEFAULT_MANAGEMENT_KEY,
        ROOT_TOKEN,
        infisical.CLIENT_SECRET,
        *services.infisical.tokens,
    }
    stored = everything_stored(services.stack)
    return [secret[:16] for secret in secrets for spelling in spellings(secret) if spelling in stored]
