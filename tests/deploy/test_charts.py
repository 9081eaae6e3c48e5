"""The values in deploy/kubernetes: the processes that Prefect's charts would start with them, next to the fleet.

The charts are neither downloaded nor rendered. The arguments and settings that they add to the values are copied below
from their templates (prefect-server and prefect-worker, in the version below).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from sandbox.stack import CHECKOUT, POOL, WORKER_TYPE, read_settings
from tests.deploy.beside import Beside
from tests.deploy.machine import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("deploy")]
SERVER, WORKER = (
    yaml.safe_load((CHECKOUT / "deploy" / "kubernetes" / f"{name}-values.yaml").read_text())
    for name in ("server", "worker")
)
VERSION = "2026.8.18172642"
"""The version of both charts."""
FLEET = read_settings(CHECKOUT / "deploy" / "fleet.env")
GLOBAL = {each["name"]: each["value"] for each in SERVER["global"]["prefect"]["env"]}
OF_THE_CHART = {
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
}
"""What the chart itself sets if the services are a separate deployment."""
ALIASES = {
    "PREFECT_MESSAGING_BROKER": "PREFECT_SERVER_EVENTS_MESSAGING_BROKER",
    "PREFECT_MESSAGING_CACHE": "PREFECT_SERVER_EVENTS_MESSAGING_CACHE",
}
"""Former names of settings, which the chart still uses."""
MIGRATION = 'set -eo pipefail\necho "Starting database migration..."\nprefect server database upgrade -y\n'


def settings(machine: Machine, part: dict[str, Any], set_by_chart: dict[str, str]) -> dict[str, str]:
    """Return the environment of a container: config map and secret, overridden by the chart's settings."""
    files = {"prefect-env": CHECKOUT / "prefect.env", "prefect-server": machine.secrets / "server.env"}
    files["prefect-worker"] = machine.secrets / "worker.env"
    named = part.get("extraEnvVarsCMs") or [part["extraEnvVarsCM"]]
    named += part.get("extraEnvVarsSecrets") or [part["extraEnvVarsSecret"]]
    found: dict[str, str] = {}
    for name in named:
        found |= read_settings(files[name])
    return found | set_by_chart


def program(machine: Machine, part: dict[str, Any], *arguments: str) -> list[str]:
    """Return a command of the values, followed by the chart's arguments."""
    name, *words = part["command"]
    return [str(machine.image.here(f"/opt/key-rotation/bin/{name}")), *words, *arguments]


@pytest.fixture(scope="module")
def charts(machine: Machine) -> Iterator[Beside]:
    """The processes of the charts' containers."""
    beside = Beside(machine, "charts")
    secret = read_settings(machine.secrets / "server.env")
    database = SERVER["externalDatabase"]["connectionStringSecretKey"]
    redis, docket = (
        SERVER["backgroundServices"]["messaging"]["redis"],
        SERVER["backgroundServices"]["messaging"]["docket"],
    )
    shared = {
        **GLOBAL,
        **OF_THE_CHART,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": secret[database],
        "PREFECT_SERVER_DOCKET_URL": secret[docket["existingSecretKey"]],
        "PREFECT_REDIS_MESSAGING_HOST": redis["host"],
    }
    of_server = {
        **{each["name"]: each["value"] for each in SERVER["server"]["env"]},
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(beside.port),
        "PREFECT_UI_API_URL": SERVER["server"]["uiConfig"]["prefectUiApiUrl"],
        "PREFECT_UI_STATIC_DIRECTORY": str(machine.folder / "charts" / "ui_build"),
    }
    config = WORKER["worker"]["config"]
    of_worker = {
        **{each["name"]: each["value"] for each in WORKER["worker"]["extraEnvVars"]},
        "PREFECT_WORKER_QUERY_SECONDS": str(config["queryInterval"]),
        "PREFECT_API_ENABLE_HTTP2": str(config["http2"]).lower(),
        "PREFECT_API_URL": f"{machine.url}/api",
        "PREFECT_API_SSL_CERT_FILE": machine.authority,
    }
    worker = ["--type", config["type"], "--pool", config["workPool"], "--install-policy", config["installPolicy"]]
    shell = [*SERVER["migrations"]["entrypoint"], MIGRATION]
    try:
        beside.start_all(
            {
                "migrate": (shell, {**GLOBAL, "PREFECT_SERVER_DATABASE_CONNECTION_URL": secret[database]}),
                "server": (
                    program(
                        machine,
                        SERVER["server"],
                        "prefect",
                        "server",
                        "start",
                        "--no-services",
                        "--port",
                        str(beside.port),
                    ),
                    settings(machine, SERVER["server"], shared | of_server),
                ),
                "services": (
                    program(machine, SERVER["backgroundServices"], *SERVER["backgroundServices"]["args"]),
                    settings(machine, SERVER["backgroundServices"], shared),
                ),
                "worker": (
                    program(
                        machine,
                        WORKER["worker"],
                        "prefect",
                        "worker",
                        "start",
                        *worker,
                        "--with-healthcheck",
                        "--name",
                        "pod",
                    ),
                    settings(machine, WORKER["worker"], of_worker),
                ),
            }
        )
        yield beside
    finally:
        beside.stop()


def test_the_server_of_a_chart_answers(charts: Beside) -> None:
    """It listens on the chart's port, and can reach the database in the secret."""
    charts.wait("server", charts.answers)


def test_a_redirect_of_a_chart_stays_on_tls(charts: Beside) -> None:
    """The ingress, whose address nobody knows in advance, says that it was asked by HTTPS."""
    charts.wait("server", charts.answers)
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")  # 127.0.0.1 is believed by default

    with httpx.Client(transport=elsewhere, auth=charts.machine.operator, headers=forwarded) as client:
        answer = client.get(f"http://127.0.0.1:{charts.port}/api/admin/version/")

    assert answer.headers["location"].startswith("https://")


def test_the_services_of_a_chart_take_part(charts: Beside) -> None:
    """They read events from the Redis in the secret, which overrides the placeholder that the chart requires."""
    charts.wait("services", charts.consumes)


def test_the_worker_of_a_chart_asks_for_work(charts: Beside) -> None:
    """The password in its secret lets it poll the work pool."""
    charts.wait("worker", lambda: charts.polls("pod"))


@pytest.mark.parametrize("part", ["server", "worker"])
def test_no_node_takes_all_servers_or_workers_with_it(part: str) -> None:
    """Kubernetes may otherwise start both on one; the charts label their pods by component."""
    values = {"server": SERVER, "worker": WORKER}[part][part]
    [apart] = values["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = {"app.kubernetes.io/name": f"prefect-{part}", "app.kubernetes.io/component": part}

    assert apart["podAffinityTerm"]["labelSelector"] == {"matchLabels": labels}
    assert apart["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert WORKER["worker"]["podDisruptionBudget"] == {"maxUnavailable": 1}


def test_a_server_answers_until_nobody_asks_it_any_more() -> None:
    """Kubernetes ends a pod while ingresses still send requests to it."""
    assert SERVER["server"]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]


def test_every_page_installs_the_version_of_the_charts_that_the_values_fit() -> None:
    """Their schemas refuse unknown values; the version is that of the templates which the tests here repeat."""
    pages = (CHECKOUT / "docs" / "how-to" / f"{name}.md" for name in ("fleet", "kubernetes", "upgrade"))
    commands = [
        found for page in pages for found in re.findall(r"helm (?:install|upgrade) .*prefect/.*", page.read_text())
    ]

    assert len(commands) == 4
    assert [each for each in commands if f"--version {VERSION} " not in each] == []


def test_a_migration_has_an_hour() -> None:
    """A change of a large table takes longer than the chart's five minutes."""
    assert SERVER["migrations"]["timeoutSeconds"] == 3600


def test_a_restricted_namespace_admits_every_pod() -> None:
    """The charts set the rest, but neither drop capabilities, nor give two of the pods a seccomp profile."""
    contexts = [part["containerSecurityContext"] for part in (SERVER["server"], SERVER["backgroundServices"])]
    contexts += [SERVER["migrations"]["securityContext"], WORKER["worker"]["containerSecurityContext"]]
    pods = [SERVER[part]["podSecurityContext"] for part in ("backgroundServices", "migrations")]

    assert [each["capabilities"] for each in contexts] == [{"drop": ["ALL"]}] * 4
    assert [each["seccompProfile"] for each in pods] == [{"type": "RuntimeDefault"}] * 2


def test_every_setting_of_the_fleet_is_given_to_the_containers() -> None:
    """The charts and the values set everything in fleet.env: client settings for workers, all others for servers."""
    given = {**OF_THE_CHART, **GLOBAL}
    servers = {ALIASES.get(name, name): value for name, value in given.items()}
    of_clients = {name: value for name, value in FLEET.items() if name.startswith("PREFECT_CLIENT_")}

    assert of_clients.items() <= {each["name"]: each["value"] for each in WORKER["worker"]["extraEnvVars"]}.items()
    assert (FLEET.items() - of_clients.items()) <= servers.items()


def test_the_worker_is_one_of_this_project() -> None:
    """It uses the project's work pool and worker type, and installs nothing at its start."""
    config = WORKER["worker"]["config"]

    assert (config["workPool"], config["type"], config["installPolicy"]) == (POOL, WORKER_TYPE, "never")


def test_each_host_is_one_address() -> None:
    """The dashboard and the API have the same host everywhere in the values."""
    host = SERVER["ingress"]["host"]["hostname"]

    assert GLOBAL["PREFECT_UI_URL"] == WORKER["worker"]["extraEnvVars"][0]["value"] == f"https://{host}/v2"
    assert SERVER["server"]["uiConfig"]["prefectUiApiUrl"] == f"https://{host}/api"
    assert WORKER["worker"]["selfHostedServerApiConfig"]["apiUrl"] == f"https://{host}/api"


def test_the_password_crosses_the_ingress_with_tls_only() -> None:
    """The chart renders `extraTls` as it stands, and `tls` only with cert-manager; the page makes the secret."""
    ingress = SERVER["ingress"]
    page = (CHECKOUT / "docs" / "how-to" / "fleet.md").read_text()

    [certificate] = ingress["extraTls"]
    assert certificate["hosts"] == [ingress["host"]["hostname"]]
    assert f"kubectl create secret tls {certificate['secretName']} " in page
    assert ingress["annotations"]["nginx.ingress.kubernetes.io/force-ssl-redirect"] == "true"


def test_the_service_account_of_workers_may_do_nothing_in_the_cluster() -> None:
    """It is for Vault's login; the chart's role would let it start Jobs that mount secrets."""
    assert (WORKER["role"]["create"], WORKER["rolebinding"]["create"]) == (False, False)
