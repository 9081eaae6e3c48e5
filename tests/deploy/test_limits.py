"""What the parts of a fleet may use of their host, according to the files in deploy/."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox.stack import CHECKOUT

COMPOSE: dict[str, Any] = yaml.safe_load((CHECKOUT / "deploy" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NGINX = (CHECKOUT / "deploy" / "nginx.conf").read_text()
POOLS = ("172.17.0.0/16", "172.18.0.0/15", "172.20.0.0/14", "172.24.0.0/13", "192.168.0.0/16")
"""Where Docker looks for a network without an address of its own (`default-address-pools`)."""
UNITS = sorted((CHECKOUT / "deploy" / "systemd").glob("*.service"))


def test_no_log_fills_the_disk() -> None:
    """Docker keeps the whole output of a container, unless it is told otherwise."""
    kept = {name: each.get("logging", {}).get("options", {}) for name, each in SERVICES.items()}

    assert {name: options for name, options in kept.items() if options != {"max-size": "20m", "max-file": "5"}} == {}


def test_no_container_of_the_image_takes_the_memory_of_the_others() -> None:
    """One that leaks is restarted; without a limit, Linux may end PostgreSQL in its place."""
    ours = {name: each for name, each in SERVICES.items() if "build" in each}

    assert {(each.get("mem_limit"), each.get("pids_limit")) for each in ours.values()} == {("1g", 512)}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_no_unit_takes_the_memory_of_the_others(unit: Path) -> None:
    """It is restarted where it leaks."""
    assert "MemoryMax=1G" in unit.read_text().splitlines()


def test_redis_knows_how_much_memory_it_has() -> None:
    """Where it has reached that, it refuses what servers hand over; else Linux would end it, with all that it holds."""
    command = SERVICES["redis"]["command"]

    assert command[command.index("--maxmemory") + 1] == "512mb"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert SERVICES["redis"]["mem_limit"] == "1g"


def test_postgresql_has_the_shared_memory_for_queries_in_parallel() -> None:
    """Docker gives a container 64 MB; PostgreSQL's error is `could not resize shared memory segment`."""
    assert SERVICES["postgres"]["shm_size"] == "256m"


def test_the_proxy_may_open_two_files_for_each_connection() -> None:
    """One is to the client, and one is to a server."""
    [files], [connections] = (
        re.findall(rf"{name} (\d+);", NGINX) for name in ("worker_rlimit_nofile", "worker_connections")
    )

    assert int(files) >= 2 * int(connections)


def test_docker_gives_no_other_project_the_network_of_the_fleet() -> None:
    """Compose would not start: `Pool overlaps with other one on this address space`."""
    [network] = COMPOSE["networks"]["default"]["ipam"]["config"]

    assert [pool for pool in POOLS if ip_network(network["subnet"]).overlaps(ip_network(pool))] == []
