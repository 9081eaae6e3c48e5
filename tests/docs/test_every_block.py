"""Each fenced block of each page is run or checked by a test, or is listed in one table of exceptions."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from prefect.client.schemas.schedules import RRuleSchedule
from prefect.settings import Settings
from prefect_redis.cleanup_queue import RedisWorkerCleanupQueueSettings
from prefect_redis.client import RedisMessagingSettings
from prefect_redis.messaging import RedisMessagingConsumerSettings, RedisMessagingPublisherSettings

from sandbox.stack import CHECKOUT, read_settings
from tasks.model.events import Event
from tasks.model.rotation import Retirement
from tasks.world.deployments import read_timetable
from tests.docs import pages
from tests.docs.pages import Block

FOLLOWED = {
    "how-to/add-rotation.md": "test_adding_a_rotation",
    "how-to/adopt.md": "test_adopting_a_key",
    "how-to/audit.md": "test_what_is_done_with_a_rotation",
    "how-to/aws-secrets-manager.md": "test_aws_secrets_manager",
    "how-to/back-up-and-restore.md": "test_the_embedded_database_restored",
    "how-to/change-rotation.md": "test_what_is_done_with_a_rotation",
    "how-to/emergency.md": "test_what_is_done_with_a_rotation",
    "how-to/exchange-management-key.md": "test_exchanging_a_management_key",
    "how-to/fleet.md": "test_everything_is_healthy",
    "how-to/infisical.md": "test_infisical",
    "how-to/kubernetes.md": "test_vaults_kubernetes_login",
    "how-to/monitor.md": "test_monitoring",
    "how-to/notifications.md": "test_the_page_leads_to_somebody_who_is_told",
    "how-to/openrouter.md": "test_openrouter",
    "how-to/read-a-secret-in-a-flow.md": "test_reading_a_secret_in_a_flow",
    "how-to/read-the-key.md": "test_reading_the_key_from_an_application",
    "how-to/remove-rotation.md": "test_what_is_done_with_a_rotation",
    "how-to/restore-key.md": "test_what_is_done_with_a_rotation",
    "how-to/rotate.md": "test_what_is_done_with_a_rotation",
    "how-to/upgrade.md": "test_what_an_upgrade_makes_again",
    "how-to/vault.md": "test_vault",
    "how-to/write-off.md": "test_writing_a_key_off",
    "reference/blocks.md": "test_the_commands_of_the_reference",
    "reference/settings.md": "test_the_commands_of_the_reference",
    "reference/vault-policy.md": "test_vault",
    "tutorial/first-rotation.md": "test_the_tutorial_works",
}
"""The test that follows each page: it saves the files with a title, and runs the commands marked `sh`."""

CHECKED = {"ini", "json", "mermaid", "yaml"}
"""The languages whose blocks, if they have no title, are checked on every page by the tests below."""

UNTRIED = {
    "aws secretsmanager create-secret": "it needs an account at AWS; the test makes the secret by boto3",
    "python -m pip install": "it would fetch packages in every test run; `make` installs the same files",
    "vault write auth/kubernetes/config": "it needs a cluster",
    "read -rs OPENROUTER_MANAGEMENT_KEY": "it needs an account at OpenRouter; the tutorial starts the same without one",
    "prefect worker start": "it runs until it is stopped; the tutorial's test runs a worker of the same pool",
    "prefect events stream": "it runs until it is stopped",
    "vault agent": "it runs until it is stopped; `test_vault_agent` starts it as it stands",
    "make demo": "it is a demonstration that takes a minute; what it does is tested piece by piece",
    "docker": "there is no container engine here; tests/deploy does what the Dockerfile and compose.yaml say",
    "python3 -m venv /opt/key-rotation": "it would fetch packages; tests/deploy does the same by the Dockerfile",
    "systemctl": "there is no systemd here; tests/deploy starts the units' commands",
    "kubectl": "it needs a cluster",
}
"""The blocks that no test runs, by the beginning of their first line, with the reason."""

REDIS = (
    RedisMessagingSettings,
    RedisMessagingPublisherSettings,
    RedisMessagingConsumerSettings,
    RedisWorkerCleanupQueueSettings,
)
"""The settings of prefect-redis."""
PAGES = [
    "../README.md",
    *sorted(str(page.relative_to(CHECKOUT / "docs")) for page in (CHECKOUT / "docs").rglob("*.md")),
]
BLOCKS = [(page, block) for page in PAGES for block in pages.read(page)]


def blocks(language: str) -> list[Any]:
    """Return the blocks of a language without a title, with the page as test id."""
    found = [(page, block) for page, block in BLOCKS if block.language == language and not block.title]
    return [pytest.param(block.text, id=f"{page} {number}") for number, (page, block) in enumerate(found)]


def reason(block: Block) -> str | None:
    """Return why a block is not run, if `UNTRIED` has it."""
    return next((why for start, why in UNTRIED.items() if block.text.strip().startswith(start)), None)


@pytest.mark.parametrize("page", sorted({page for page, _ in BLOCKS}))
def test_each_block_is_run_or_checked_or_said_not_to_be(page: str) -> None:
    """Every command and file in the documentation is tested, or has a reason not to be."""
    mine = [block for of, block in BLOCKS if of == page]

    runs = [block for block in mine if block.language in {"sh", "text"} or block.title]
    other = [block for block in mine if block not in runs and block.language not in CHECKED]
    assert [block.text for block in runs if page not in FOLLOWED and not reason(block)] == []
    assert [block.text for block in other if not reason(block)] == []


def test_every_fence_is_read_as_a_block() -> None:
    """A fence that the tests cannot parse would hide its block from them."""
    fences = {page: len(re.findall(r"^ *```", (CHECKOUT / "docs" / page).read_text(), re.MULTILINE)) for page in PAGES}

    assert fences == {page: 2 * sum(of == page for of, _ in BLOCKS) for page in PAGES}


def test_nothing_stands_in_the_tables_without_need() -> None:
    """Each exception matches a block, and each test that follows a page exists, in a file that names the page."""
    defined = {
        name: file.read_text()
        for file in (CHECKOUT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }

    starts = [block.text.strip() for _, block in BLOCKS]
    assert [start for start in UNTRIED if not any(text.startswith(start) for text in starts)] == []
    stems = {page: page.rpartition("/")[2].removesuffix(".md") for page in FOLLOWED}
    assert [page for page, test in FOLLOWED.items() if stems[page] not in defined.get(test, "")] == []


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_can_be_read(text: str) -> None:
    """Each document must be a mapping."""
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(text))


@pytest.mark.parametrize("text", blocks("json"))
def test_json_can_be_read(text: str) -> None:
    """The example must be valid, because a program would send it."""
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("text", blocks("ini"))
def test_each_setting_is_one_of_prefect(text: str) -> None:
    """Prefect would silently ignore an unknown setting."""
    named = [line.partition("=")[0] for line in text.split()]

    assert named
    assert set(named) <= known_settings()


@pytest.mark.parametrize("file", ["prefect.env", "deploy/fleet.env"])
def test_each_setting_of_a_file_is_one_of_prefect(file: str) -> None:
    """Prefect would silently ignore an unknown setting."""
    assert set(read_settings(CHECKOUT / file)) <= known_settings() | {"DO_NOT_TRACK"}


def known_settings() -> set[str]:
    """Return the environment variables of all settings of Prefect and of prefect-redis."""
    schema = Settings.model_json_schema(mode="validation")
    found = {f"{kind.model_config['env_prefix']}{name}".upper() for kind in REDIS for name in kind.model_fields}
    return found | set(re.findall(r"PREFECT_[A-Z0-9_]+", json.dumps(schema)))


@pytest.mark.parametrize("text", blocks("mermaid"))
def test_a_drawing_is_well_formed(text: str) -> None:
    """Each line is in a known form of Mermaid, with closed brackets."""
    first, *lines = text.strip().splitlines()
    node = r"\w+(?:\(\[[^\[\]()]+\]\)|\[\([^\[\]()]+\)\]|\[[^\[\]()]+\])?"
    known = {
        "flowchart LR": rf"{node}(?: --(?: [\w ,]+ --)?> {node})+",
        "stateDiagram-v2": r"(?:\[\*\]|\w+) --> \w+: [^:;]+",
        "sequenceDiagram": r"participant \w+ as \w+|\w+--?>>\w+: [^;]+|Note over \w+(?:,\w+)*: [^;]+",
    }

    assert [line for line in lines if not re.fullmatch(known[first], line.strip())] == []


def block(page: str, language: str) -> str:
    """Return a page's only block of a language without a title."""
    [found] = [block.text for of, block in BLOCKS if of == page and block.language == language and not block.title]
    return found


def test_the_schedule_of_the_page_is_one_that_this_project_knows() -> None:
    """It is parsed as what the page says in words: every 30 days at 03:30 in Berlin."""
    [schedule] = yaml.safe_load(block("explanation/schedules.md", "yaml"))["schedules"]

    timetable = read_timetable(RRuleSchedule(rrule=schedule["rrule"], timezone=schedule["timezone"]))

    assert str(timetable) == "every 30 days at 03:30 Europe/Berlin"


def test_the_retirement_of_the_page_is_one() -> None:
    """The example is valid exactly as it is written."""
    assert Retirement(**yaml.safe_load(block("how-to/restore-key.md", "yaml"))["retirement"])


def test_external_secrets_reads_what_the_policy_permits() -> None:
    """Path, field and role agree with the pages about Vault."""
    store, secret = yaml.safe_load_all(block("how-to/read-the-key.md", "yaml"))

    [data] = secret["spec"]["data"]
    vault = store["spec"]["provider"]["vault"]
    consumer = pages.files("reference/vault-policy.md")["consumer.hcl"]
    assert f'path "{vault["path"]}/data/{data["remoteRef"]["key"]}"' in consumer
    assert (
        f"policy write {vault['auth']['kubernetes']['role']} consumer.hcl"
        in (CHECKOUT / "docs/how-to/vault.md").read_text()
    )
    assert data["remoteRef"]["property"] == "value"


def test_the_webhook_gets_what_the_page_shows() -> None:
    """The fields agree with those of the event that triggers it."""
    assert set(json.loads(block("how-to/notifications.md", "json"))) == {"rotation", *Event.ROTATION_COMPLETED.payload}
