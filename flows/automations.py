"""Make the automations of a folder of files, by name: `python -m flows.automations --notify slack-webhook/on-call`.

A file holds one automation as Prefect's API takes it, with two liberties: `block_document: <block type slug>/<name>`
and `deployment: <flow>/<name>` stand for ids, and `$notify`, `$restart` and `$webhook` for what the command line gives.
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
"""Where this project's automations are: in the checkout, or beside the installed packages."""
PLACEHOLDERS = {
    "notify": "the notification block, such as slack-webhook/on-call or custom-webhook/on-call",
    "restart": "your own deployment to start after each rotation, as flow/name",
    "webhook": "the webhook block to call after each rotation, as webhook/name",
}
"""What a file may leave open, and what the command line says about it."""
NAMED = ("block_document", "deployment")
"""The fields of an action that hold a name, or a placeholder for one, where Prefect's API takes an id."""
WEBHOOK_TYPE = "webhook"
"""The slug of the one block type that Prefect's action call-webhook can use."""


async def make_automations(given: Mapping[str, str], folder: Path = FOLDER) -> dict[str, str]:
    """Make each automation of a folder, or bring the one of the same name up to date.

    One that a person has paused in the dashboard stays paused.

    Args:
        given: What stands for the placeholders, by their names without the dollar sign.
        folder: Where the files are.

    Returns:
        What was done, by the automation's name, in words.

    Raises:
        ConfigurationError: A file is no automation, or a block or deployment does not exist. Nothing was made.
        ServiceError: Prefect's API failed.
    """
    files = read_files(folder)
    done: dict[str, str] = {}
    ready: list[AutomationCore] = []
    async with get_client() as client:
        with api_errors("looking up what the automations name"):
            for file, wanted in files.items():
                if missing := [name for name in _placeholders(wanted) if name not in given]:
                    done[wanted["name"]] = f"left out: it needs --{missing[0]}"
                else:
                    ready.append(_automation(file, await _resolve(client, file, wanted, given)))
        for automation in ready:
            with api_errors(f"making the automation {automation.name}"):
                done[automation.name] = await _make(client, automation)
    return {wanted["name"]: done[wanted["name"]] for wanted in files.values()}


def read_files(folder: Path = FOLDER) -> dict[Path, dict[str, Any]]:
    """Read the automations of a folder.

    Args:
        folder: Where the files are.

    Returns:
        What each file holds, in the order of their names.

    Raises:
        ConfigurationError: There are none, or one of them is no automation.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ConfigurationError(f"--folder: there are no automations in {folder}. Nothing was made.")
    return {file: _read(file) for file in files}


def _read(file: Path) -> dict[str, Any]:
    try:
        wanted = yaml.safe_load(file.read_text())
    except yaml.YAMLError:
        raise ConfigurationError(f"{file.name} is not YAML. Nothing was made.") from None
    if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
        raise ConfigurationError(f"{file.name} is no automation: look at name. Nothing was made.")
    actions = wanted.get("actions")
    if not isinstance(actions, list) or not all(isinstance(action, dict) for action in actions):
        raise ConfigurationError(f"{file.name} is no automation: look at actions. Nothing was made.")
    if unknown := sorted(set(_placeholders(wanted)) - set(PLACEHOLDERS)):
        known = ", ".join(f"${name}" for name in PLACEHOLDERS)
        raise ConfigurationError(f"{file.name}: there is no ${unknown[0]}, only {known}. Nothing was made.")
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
        raise ConfigurationError(f"{where}: write {block} as <block type slug>/<name>. Nothing was made.")
    try:
        found = await client.read_block_document_by_name(name, slug, include_secrets=False)
    except ObjectNotFound:
        raise ConfigurationError(
            f"{where}: there is no block {block}; make it in the dashboard first. Nothing was made."
        ) from None
    # Otherwise the automation would be made, and would fail without a word each time that it fires.
    capabilities = found.block_schema.capabilities if found.block_schema else []
    if action == "send-notification" and "notify" not in capabilities:
        raise ConfigurationError(f"{where}: {block} is no block that notifies. Nothing was made.")
    if action == "call-webhook" and slug != WEBHOOK_TYPE:
        raise ConfigurationError(f"{where}: {block} is no block of the type {WEBHOOK_TYPE}. Nothing was made.")
    return str(found.id)


async def _deployment_id(client: PrefectClient, where: str, deployment: str) -> str:
    if not all(deployment.partition("/")):
        raise ConfigurationError(f"{where}: write {deployment} as <flow>/<deployment>. Nothing was made.")
    try:
        return str((await client.read_deployment_by_name(deployment)).id)
    except ObjectNotFound:
        raise ConfigurationError(
            f"{where}: there is no deployment {deployment}; deploy it first. Nothing was made."
        ) from None


def _automation(file: Path, wanted: dict[str, Any]) -> AutomationCore:
    try:
        return AutomationCore.model_validate(wanted)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise ConfigurationError(f"{file.name} is no automation: look at {field}. Nothing was made.") from None


async def _make(client: PrefectClient, automation: AutomationCore) -> str:
    existing = await client.read_automations_by_name(automation.name)
    if not existing:
        await client.create_automation(automation)
        return "made"
    paused = not existing[0].enabled
    if paused:
        automation = automation.model_copy(update={"enabled": False})
    await client.update_automation(existing[0].id, automation)
    return "brought up to date, and paused as before" if paused else "brought up to date"


def main() -> int:
    """Read the command line, make the automations, and print what was done.

    Returns:
        0 where everything that was asked for is there, 1 where it is not.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.automations", description=(__doc__ or "").split("\n")[0])
    for name, meaning in PLACEHOLDERS.items():
        parser.add_argument(f"--{name}", metavar="NAME", help=meaning)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where the files are; those of this project by default"
    )
    chosen = parser.parse_args()
    given = {name: getattr(chosen, name) for name in PLACEHOLDERS if getattr(chosen, name)}
    try:
        done = ask_prefect(lambda: make_automations(given, chosen.folder))
    except KeyRotationError as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        return 1
    table = Table("automation", "what was done", title="Automations")
    for name, what in done.items():
        table.add_row(name, what)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
