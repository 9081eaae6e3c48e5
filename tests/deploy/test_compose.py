"""The services of deploy/compose.yaml, started on this machine, and rotations by their workers through the proxy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import ip_address, ip_network
from itertools import count

import httpx
import pytest
import websockets
from prefect.blocks.system import Secret
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.logging.clients import get_logs_subscriber
from pydantic import SecretStr
from redis import Redis
from websockets.typing import Subprotocol

from sandbox import openrouter
from sandbox.openrouter_account import DEFAULT_MANAGEMENT_KEY, OpenRouterSandbox
from sandbox.server import running
from sandbox.setup import CONNECTION, prepare
from sandbox.stack import CHECKOUT, POOL, read_settings
from tasks.model.events import Event
from tasks.model.rotation import KeySettings, Rotation
from tests.deploy.machine import Machine
from tests.e2e.driver import deploy_to, ended, start
from tests.e2e.processes import held_by

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("deploy")]
FLEET = read_settings(CHECKOUT / "deploy" / "fleet.env")
SECRETS = ("AUTH_STRING", "ENCRYPTION_KEY", "CONNECTION_URL", "MESSAGING_URL", "QUEUE_URL", "DOCKET_URL", "PASSWORD")
"""The endings of the names of settings that contain a password or a key."""
PREFECT = Subprotocol("prefect")
NGINX = CHECKOUT / "deploy" / "nginx.conf"
numbers = count(1)


@pytest.fixture
async def account(machine: Machine) -> AsyncIterator[OpenRouterSandbox]:
    """The OpenRouter stand-in, whose connection blocks were saved through the proxy."""
    account = OpenRouterSandbox()
    with running(openrouter.create_app(account)) as url, machine.as_client():
        await prepare(SecretStr(DEFAULT_MANAGEMENT_KEY), f"{url}/api/v1")
        await deploy_to(POOL)
        yield account


def make_rotation() -> Rotation:
    """Create a rotation with a unique name whose destination is a Prefect secret."""
    name = f"fleet-{next(numbers)}"
    return Rotation(
        name=name,
        connection=CONNECTION,
        key=KeySettings(name="checkout service", limit_usd=50, limit_reset="monthly"),
        destinations=[f"secret/{name}"],
        overlap=timedelta(0),
    )


def test_everything_is_healthy(machine: Machine) -> None:
    """Every health check of compose.yaml and of the image passes, for both servers and both workers."""
    assert machine.checked == ["postgres", "redis", "server-1", "server-2", "proxy", "worker-1", "worker-2"]
    assert [name for name in machine.checked if not machine.is_ready(name, "service_healthy")] == []


def test_no_two_workers_are_replaced_at_once(machine: Machine) -> None:
    """Compose stops all replicas of a service before it starts new ones: emergencies would wait minutes."""
    assert [name for name, each in machine.services.items() if each.get("deploy", {}).get("replicas", 1) != 1] == []
    assert [name for name in machine.services if name.startswith("worker")] == ["worker-1", "worker-2"]


def test_only_the_proxy_is_published(machine: Machine) -> None:
    """No other service can be reached from outside the host."""
    assert {name: each["ports"] for name, each in machine.services.items() if "ports" in each} == {
        "proxy": ["443:8443"]
    }


def test_the_servers_keep_their_addresses(machine: Machine) -> None:
    """The proxy knows servers by address, so that it starts while one is gone; no other container may get one."""
    [network] = machine.compose["networks"]["default"]["ipam"]["config"]
    others, own = ip_network(network["ip_range"]), ip_network(machine.subnet)
    fixed = [ip_address(machine.addresses[f"server-{number}"]) for number in (1, 2)]

    assert re.findall(r"^ +server (.+):4200 ", NGINX.read_text(), re.MULTILINE) == [str(each) for each in fixed]
    assert [each in own and each not in others for each in fixed] == [True, True]


def test_secrets_come_from_files(machine: Machine) -> None:
    """No setting contains a password or a key, and every declared secret is a file that a service mounts."""
    named = {name for each in machine.services.values() for name in each.get("environment", {})}
    mounted = {secret for each in machine.services.values() for secret in each.get("secrets", [])}

    assert {name for name in named | set(FLEET) if name.endswith(SECRETS)} == set()
    assert mounted == set(machine.compose["secrets"])
    assert {each["file"] for each in machine.compose["secrets"].values()} == {f"secrets/{name}" for name in mounted}


def test_the_projects_containers_can_write_nowhere_but_to_memory(machine: Machine) -> None:
    """They have no capability, cannot gain privileges, and have a read-only root."""
    ours = {name: each for name, each in machine.services.items() if name not in {"postgres", "redis"}}

    assert [name for name, each in ours.items() if not each["read_only"] or each["cap_drop"] != ["ALL"]] == []
    assert [name for name, each in ours.items() if each["security_opt"] != ["no-new-privileges:true"]] == []


@pytest.mark.parametrize("path", ["/api/admin/settings", "/api/metrics", "/api/block_types/slug/secret"])
@pytest.mark.parametrize("auth", [None, ("operator", "guess")], ids=["nobody", "wrong password"])
def test_without_the_password_nothing_is_told(machine: Machine, path: str, auth: tuple[str, str] | None) -> None:
    """The proxy passes requests on, but each endpoint requires the password, even that of the metrics."""
    with machine.http(auth) as client:
        assert client.get(path).status_code == 401


def test_nothing_is_told_without_tls(machine: Machine) -> None:
    """The published port accepts only HTTPS."""
    answer = httpx.get(machine.url.replace("https:", "http:"))

    assert (answer.status_code, "HTTPS port" in answer.text) == (400, True)


def test_a_redirect_stays_on_tls(machine: Machine) -> None:
    """A server that does not believe the proxy leads from HTTPS to a port that answers 400."""
    with machine.http(machine.operator) as client:
        answer = client.get("/api/admin/version/")

    assert (answer.status_code, answer.headers["location"]) == (307, f"{machine.url}/api/admin/version")


def test_the_proxy_tells_who_asked_for_what_without_secrets(machine: Machine) -> None:
    """A path is logged for each request from outside; the query may hold a secret, and the header does."""
    with machine.http(machine.operator) as client:
        client.get("/api/admin/version", params={"include_secrets": "hidden"})

    lines = machine.access_log.read_text().splitlines()
    assert any(
        re.fullmatch(r"\S+ 127\.0\.0\.1 GET /api/admin/version 200 127\.0\.0\.1:\d+ [\d.]+", each) for each in lines
    )
    assert [each for each in lines if "hidden" in each or "Basic" in each or "?" in each] == []


def test_a_server_that_hangs_is_left_out(machine: Machine) -> None:
    """One request waits for it, and is then answered by the other server, as are those after it."""
    hung = machine.processes["server-2"].pid
    seconds = []
    os.killpg(hung, signal.SIGSTOP)
    try:
        with machine.http(machine.operator) as client:
            for _ in range(12):
                answer = client.get("/api/admin/version")
                assert answer.status_code == 200
                seconds.append(answer.elapsed.total_seconds())
    finally:
        os.killpg(hung, signal.SIGCONT)

    assert max(seconds) < 35
    assert sorted(seconds)[-2] < 5


@pytest.mark.parametrize("server", ["server-1", "server-2"])
def test_each_server_runs_with_the_settings_of_the_fleet(machine: Machine, server: str) -> None:
    """Each server reports the settings of fleet.env; those of Redis are not part of its report."""
    told = httpx.get(f"{machine.address(server)}/api/admin/settings", auth=machine.operator).json()["server"]
    asked = {name: value for name, value in FLEET.items() if name.startswith("PREFECT_SERVER_")}

    found = {name: machine.setting(told, name.removeprefix("PREFECT_SERVER_").lower()) for name in asked}
    # A server reports seconds as numbers with a fraction.
    said = {name: str(value).lower().removesuffix(".0") for name, value in found.items()}
    assert said == {name: value.lower() for name, value in asked.items()}


async def test_rotations_run_on_the_workers_and_are_seen_live(machine: Machine, account: OpenRouterSandbox) -> None:
    """Every run completes, the destinations hold the live keys, and events and logs arrive through the proxy."""
    rotations = [make_rotation() for _ in range(4)]
    for rotation in rotations:
        await Secret(value="not-yet-rotated").asave(rotation.name)
    completed = EventFilter(event=EventNameFilter(name=[Event.ROTATION_COMPLETED.value]))
    async with get_events_subscriber(filter=completed) as events, get_logs_subscriber() as logs:
        runs = [await start(rotation, deployment_name=POOL) for rotation in rotations]
        ends = [await ended(run) for run in runs]
        seen = {(await anext(events)).payload["rotation"] for _ in rotations}
        logged = {(await anext(logs)).flow_run_id}

    assert [end.state_name for end in ends] == ["Completed"] * len(rotations)
    assert seen == {rotation.name for rotation in rotations}
    assert logged <= set(runs)
    live = {key.secret for key in account.live_keys()}
    held = set().union(*[await held_by(rotation) for rotation in rotations])
    assert held == live


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", f"work_pools/{POOL}/workers/connect"])
async def test_each_websocket_passes_the_proxy(machine: Machine, path: str) -> None:
    """The websockets for events, logs and workers accept the password through the proxy."""
    user, password = machine.operator
    told = {"type": "auth", "token": f"{user}:{password}"}
    basic = {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
    trust = ssl.create_default_context(cafile=machine.authority)
    url = f"{machine.url.replace('https:', 'wss:')}/api/{path}"

    async with websockets.connect(url, subprotocols=[PREFECT], additional_headers=basic, ssl=trust) as socket:
        await socket.send(json.dumps(told))
        assert json.loads(await asyncio.wait_for(socket.recv(), 30))["type"] == "auth_success"


def test_events_and_services_are_in_redis(machine: Machine) -> None:
    """They must be in Redis, not in memory, to be shared; docs/how-to/monitor.md monitors these."""
    with Redis(port=machine.ports["redis", 6379], password=machine.redis_password, decode_responses=True) as redis:
        groups = {stream: redis.xinfo_groups(stream) for stream in ("events", "actions")}
        redis.select(1)
        schedulers = redis.zcount("prefect:workers", time.time() - 30, "+inf")

    assert {"event-persister", "reactive-triggers"} <= {group["name"] for group in groups["events"]}
    assert [group for each in groups.values() for group in each if not {"lag", "pending"} <= group.keys()] == []
    assert groups["actions"]
    assert schedulers
