"""Vault servers for tests: always the stand-in, and a real one if a binary is on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac
import requests

from sandbox.server import running
from sandbox.stack import free_port
from sandbox.vault import create_app
from sandbox.vault_tokens import ROOT_TOKEN, VaultSandbox

BINARY = shutil.which("vault") or shutil.which("bao")
READ_WRITE = {"read", "create", "update"}


@dataclass
class TestVault:
    """A Vault that belongs to the test."""

    __test__ = False

    url: str
    root: hvac.Client
    make_role: Callable[[dict[str, set[str]]], tuple[str, str]]
    end_tokens: Callable[[], None]
    state: VaultSandbox | None = None


async def at_once(_seconds: float) -> None:
    """Replace the wait between two attempts, without waiting."""


def _root(url: str) -> hvac.Client:
    return hvac.Client(url=url, token=ROOT_TOKEN)


@contextmanager
def stand_in() -> Iterator[TestVault]:
    """Run the stand-in of this project."""
    sandbox = VaultSandbox()
    sandbox.mount("kv-one", version="1")
    roles = iter(range(1000))

    def make_role(policy: dict[str, set[str]]) -> tuple[str, str]:
        role, secret = f"role-{next(roles)}", "the-secret-id"
        sandbox.allow_login("approle", role, secret, policy)
        return role, secret

    with running(create_app(sandbox)) as url:
        yield TestVault(url, _root(url), make_role, sandbox.end_tokens, sandbox)


@contextmanager
def _process(args: list[str], home: Path, url: str) -> Iterator[None]:
    env = {"PATH": os.environ["PATH"], "HOME": str(home)}
    with (home / "vault.log").open("wb") as log:
        process = subprocess.Popen([str(BINARY), *args], env=env, stdout=log, stderr=log)
        try:
            for _ in range(200):
                with suppress(requests.RequestException):
                    requests.get(f"{url}/v1/sys/seal-status", timeout=1)
                    break
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def real(home: Path) -> Iterator[TestVault]:
    """Run a real Vault or OpenBao in dev mode."""
    address = f"127.0.0.1:{free_port()}"
    url = f"http://{address}"
    args = [
        "server",
        "-dev",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address={address}",
        "-dev-no-store-token",
    ]
    with _process(args, home, url):
        root = _root(url)
        root.sys.enable_auth_method("approle")
        root.sys.enable_secrets_engine("kv", path="kv-one", options={"version": "1"})
        accessors: list[str] = []

        def make_role(policy: dict[str, set[str]]) -> tuple[str, str]:
            return _make_role(root, policy, accessors)

        def end_tokens() -> None:
            for accessor in root.list("auth/token/accessors")["data"]["keys"]:
                token = root.auth.token.lookup_accessor(accessor)["data"]
                if token["display_name"] == "approle":
                    root.auth.token.revoke_accessor(accessor)

        yield TestVault(url, root, make_role, end_tokens)


def _make_role(root: hvac.Client, policy: dict[str, set[str]], made: list[str]) -> tuple[str, str]:
    name = f"role-{len(made)}"
    made.append(name)
    rules = {"path": {path: {"capabilities": sorted(granted)} for path, granted in policy.items()}}
    root.sys.create_or_update_policy(name, json.dumps(rules))
    root.auth.approle.create_or_update_approle(name, token_policies=[name])
    role_id = root.auth.approle.read_role_id(name)["data"]["role_id"]
    secret_id = root.auth.approle.generate_secret_id(name)["data"]["secret_id"]
    return role_id, secret_id


@contextmanager
def sealed_stand_in() -> Iterator[str]:
    """Run a sealed stand-in."""
    sandbox = VaultSandbox()
    sandbox.sealed = True
    with running(create_app(sandbox)) as url:
        yield url


@contextmanager
def sealed_real(home: Path) -> Iterator[str]:
    """Run a real Vault that was initialised but never unsealed."""
    address = f"127.0.0.1:{free_port()}"
    config: dict[str, Any] = {
        "storage": {"inmem": {}},
        "listener": {"tcp": {"address": address, "tls_disable": True}},
        "disable_mlock": True,
    }
    (home / "sealed.json").write_text(json.dumps(config))
    with _process(["server", f"-config={home / 'sealed.json'}"], home, f"http://{address}"):
        hvac.Client(url=f"http://{address}", token="").sys.initialize(1, 1)
        yield f"http://{address}"
