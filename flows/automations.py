"""Create or update the automations in a folder: `python -m flows.automations --notify slack-webhook/on-call`.

Each file holds one automation in the format of Prefect's API, with two additions: names are resolved to ids
(`block_document: <block type slug>/<name>`, `deployment: <flow>/<name>`), and the placeholders `$notify`, `$restart`
and `$webhook` are replaced by the command's arguments.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect import get_client
from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from blocks.errors import ConfigurationError, KeyRotationError
from flows.server import ask_prefect
from tasks.world.api import api_errors

FOLDER = Path(__file__).resolve().parent.parent / "automations"
"""This project's automations, in the checkout or next to the installed packages."""
PLACEHOLDERS = {
    "notify": "notification block, such as slack-webhook/on-call or custom-webhook/on-call",
    "restart": "deployment to run after each rotation, as flow/name",
    "webhook": "webhook block to call after each rotation, as webhook/name",
}
"""The placeholders that a file may use, with the help text of the command-line option."""
NAMED = ("block_document", "deployment")
"""The fields of an action that hold a name or a placeholder where Prefect's API expects an id."""
WEBHOOK_TYPE = "webhook"
"""Slug of the only block type that Prefect's call-webhook action accepts."""


async def make_automations(given: Mapping[str, str], folder: Path = FOLDER) -> dict[str, str]:
    """Create each automation of a folder, or update the existing one of the same name.

    An automation that was paused in the dashboard stays paused.

    Args:
        given: The values of the placeholders, by name without the dollar sign.
        folder: The folder with the files.

    Returns:
        The result for each automation, by its name.

    Raises:
        ConfigurationError: A file is invalid, or a block or deployment does not exist. Nothing was created.
        ServiceError: Prefect's API failed.
    """
    files = read_files(folder)
    done: dict[str, str] = {}
    ready: list[AutomationCore] = []
    async with get_client() as client:
        with api_errors("looking up the blocks and deployments of the automations"):
            for file, wanted in files.items():
                if missing := [name for name in _placeholders(wanted) if name not in given]:
                    done[wanted["name"]] = f"skipped: requires --{missing[0]}"
                else:
                    ready.append(_automation(file, await _resolve(client, file, wanted, given)))
        for automation in ready:
            with api_errors(f"creating the automation {automation.name}"):
                done[automation.name] = await _make(client, automation)
    return {wanted["name"]: done[wanted["name"]] for wanted in files.values()}


def read_files(folder: Path = FOLDER) -> dict[Path, dict[str, Any]]:
    """Return the content of each automation file in a folder, sorted by name.

    Raises:
        ConfigurationError: The folder has no such file, or one is invalid.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ConfigurationError(f"--folder: {folder} contains no *.yaml files. Nothing was created.")
    return {file: _read(file) for file in files}


def _read(file: Path) -> dict[str, Any]:
    try:
        wanted = yaml.safe_load(file.read_text())
    except yaml.YAMLError:
        raise ConfigurationError(f"{file.name} is not valid YAML. Nothing was created.") from None
    if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
        raise ConfigurationError(f"{file.name} is not a valid automation: check name. Nothing was created.")
    actions = wanted.get("actions")
    if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
        raise ConfigurationError(f"{file.name} is not a valid automation: check actions. Nothing was created.")
    if unknown := sorted(set(_placeholders(wanted)) - set(PLACEHOLDERS)):
        known = ", ".join(f"${name}" for name in PLACEHOLDERS)
        raise ConfigurationError(
            f"{file.name}: unknown placeholder ${unknown[0]}; known are {known}. Nothing was created."
        )
    return wanted


def _placeholders(wanted: Mapping[str, Any]) -> list[str]:
    return sorted({_placeholder(action.get(field)) for action in wanted["actions"] for field in NAMED} - {""})


def _placeholder(value: object) -> str:
    return value[1:] if isinstance(value, str) and value.startswith("$") else ""


async def _resolve(
    client: PrefectClient, file: Path, wanted: dict[str, Any], given: Mapping[str, str]
) -> dict[str, Any]:
    actions = []
    for action in wanted["actions"]:
        resolved = dict(action)
        if "block_document" in action:
            where, named = _named(file, "block_document", resolved.pop("block_document"), given)
            resolved["block_document_id"] = await _block_id(client, where, named, str(action.get("type")))
        if "deployment" in action:
            where, named = _named(file, "deployment", resolved.pop("deployment"), given)
            resolved["deployment_id"] = await _deployment_id(client, where, named)
        actions.append(resolved)
    return {**wanted, "actions": actions}


def _named(file: Path, field: str, value: object, given: Mapping[str, str]) -> tuple[str, str]:
    if placeholder := _placeholder(value):
        return f"--{placeholder}", given[placeholder]
    return f"{file.name}: {field}", str(value)


async def _block_id(client: PrefectClient, where: str, block: str, action: str) -> str:
    slug, _, name = block.partition("/")
    if not slug or not name:
        raise ConfigurationError(f"{where}: write {block} as <block type slug>/<name>. Nothing was created.")
    try:
        found = await client.read_block_document_by_name(name, slug, include_secrets=False)
    except ObjectNotFound:
        raise ConfigurationError(
            f"{where}: the block {block} does not exist; create it in the dashboard first. Nothing was created."
        ) from None
    # Prefect would accept the automation, but its action would fail silently each time.
    capabilities = found.block_schema.capabilities if found.block_schema else []
    if action == "send-notification" and "notify" not in capabilities:
        raise ConfigurationError(f"{where}: {block} is not a notification block. Nothing was created.")
    if action == "call-webhook" and slug != WEBHOOK_TYPE:
        raise ConfigurationError(f"{where}: {block} is not a block of type {WEBHOOK_TYPE}. Nothing was created.")
    return str(found.id)


async def _deployment_id(client: PrefectClient, where: str, deployment: str) -> str:
    if not all(deployment.partition("/")):
        raise ConfigurationError(f"{where}: write {deployment} as <flow>/<deployment>. Nothing was created.")
    try:
        return str((await client.read_deployment_by_name(deployment)).id)
    except ObjectNotFound:
        raise ConfigurationError(
            f"{where}: the deployment {deployment} does not exist; deploy it first. Nothing was created."
        ) from None


def _automation(file: Path, wanted: dict[str, Any]) -> AutomationCore:
    try:
        return AutomationCore.model_validate(wanted)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise ConfigurationError(
            f"{file.name} is not a valid automation: check {field}. Nothing was created."
        ) from None


async def _make(client: PrefectClient, automation: AutomationCore) -> str:
    existing = await client.read_automations_by_name(automation.name)
    if not existing:
        await client.create_automation(automation)
        return "created"
    paused = not existing[0].enabled
    if paused:
        automation = automation.model_copy(update={"enabled": False})
    await client.update_automation(existing[0].id, automation)
    return "updated, still paused" if paused else "updated"


def main() -> int:
    """Create the automations that the command line asks for, and print the results.

    Returns:
        The exit code: 0 on success, 1 on an error.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.automations", description=(__doc__ or "").split("\n")[0])
    for name, meaning in PLACEHOLDERS.items():
        parser.add_argument(f"--{name}", metavar="NAME", help=meaning)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="folder with the automations; by default, those of this project"
    )
    chosen = parser.parse_args()
    given = {name: getattr(chosen, name) for name in PLACEHOLDERS if getattr(chosen, name)}
    try:
        done = ask_prefect(lambda: make_automations(given, chosen.folder))
    except KeyRotationError as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        return 1
    table = Table("automation", "result", title="Automations")
    for name, what in done.items():
        table.add_row(name, what)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
