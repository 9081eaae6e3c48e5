"""Make the automations of a folder of files, by name: `python -m flows.automations --notify slack-webhook/on-call`.

A file holds one automation as Prefect's API takes it, with two liberties: `block_document: <block type slug>/<name>`
and `deployment: <flow>/<name>` stand for ids, and `$notify`, `$restart` and `$webhook` for what the command line gives.
"""

from __future__ import annotations

import argparse
import asyncio
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
from tasks.world import plainly

FOLDER = Path(__file__).resolve().parent.parent / "automations"
"""Where the checkout keeps its automations."""
PLACEHOLDERS = {
    "notify": "the notification block, such as slack-webhook/on-call, email-server or custom-webhook",
    "restart": "your own deployment to start after each rotation, as flow/name",
    "webhook": "the webhook block to call after each rotation, as webhook/name",
}
"""What a file may leave open, and what the command line says about it."""


async def make_automations(given: Mapping[str, str], folder: Path = FOLDER) -> dict[str, str]:
    """Make each automation of a folder, or bring the one of the same name up to date.

    Args:
        given: What stands for the placeholders, by their names without the dollar sign.
        folder: Where the files are.

    Returns:
        What was done, by the automation's name, in words.

    Raises:
        ConfigurationError: A file is no automation, or names a block or deployment that does not exist.
        ServiceError: Prefect's API failed.
    """
    done: dict[str, str] = {}
    async with get_client() as client:
        for file, wanted in read_files(folder).items():
            missing = _missing(wanted, given)
            if missing:
                done[wanted["name"]] = f"left out: it needs --{missing}"
                continue
            with plainly(f"making the automation {file.name}"):
                done[wanted["name"]] = await _make(client, file, await _resolve(client, wanted, given))
    return done


def read_files(folder: Path = FOLDER) -> dict[Path, dict[str, Any]]:
    """Read the automations of a folder.

    Args:
        folder: Where the files are.

    Returns:
        What each file holds, in the order of their names.
    """
    return {file: yaml.safe_load(file.read_text()) for file in sorted(folder.glob("*.yaml"))}


def _missing(wanted: Mapping[str, Any], given: Mapping[str, str]) -> str:
    named = {str(value)[1:] for action in wanted["actions"] for value in action.values() if str(value).startswith("$")}
    return next((name for name in sorted(named) if not given.get(name)), "")


async def _resolve(client: PrefectClient, wanted: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    actions = []
    for action in wanted["actions"]:
        resolved = {name: given.get(str(value)[1:], value) for name, value in action.items()}
        if block := resolved.pop("block_document", None):
            resolved["block_document_id"] = await _block_id(client, str(block))
        if deployment := resolved.pop("deployment", None):
            resolved["deployment_id"] = await _deployment_id(client, str(deployment))
        actions.append(resolved)
    return {**wanted, "actions": actions}


async def _block_id(client: PrefectClient, block: str) -> str:
    slug, _, name = block.partition("/")
    try:
        return str((await client.read_block_document_by_name(name, slug, include_secrets=False)).id)
    except ObjectNotFound:
        raise ConfigurationError(f"There is no block {block}: make it in the dashboard first.") from None


async def _deployment_id(client: PrefectClient, deployment: str) -> str:
    try:
        return str((await client.read_deployment_by_name(deployment)).id)
    except ObjectNotFound:
        raise ConfigurationError(f"There is no deployment {deployment}.") from None


async def _make(client: PrefectClient, file: Path, wanted: dict[str, Any]) -> str:
    try:
        automation = AutomationCore.model_validate(wanted)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise ConfigurationError(f"{file.name} is no automation: look at {field}.") from None
    existing = await client.read_automations_by_name(automation.name)
    if existing:
        await client.update_automation(existing[0].id, automation)
        return "brought up to date"
    await client.create_automation(automation)
    return "made"


def main() -> int:
    """Read the command line, make the automations, and print what was done.

    Returns:
        0 where everything that was asked for is there.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.automations", description=(__doc__ or "").split("\n")[0])
    for name, meaning in PLACEHOLDERS.items():
        parser.add_argument(f"--{name}", metavar="NAME", help=meaning)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are")
    chosen = vars(parser.parse_args())
    try:
        done = asyncio.run(make_automations(chosen, chosen["folder"]))
    except KeyRotationError as error:
        Console(stderr=True).print(str(error), markup=False)
        return 1
    table = Table("automation", "what was done", title="Automations")
    for name, what in done.items():
        table.add_row(name, what)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
