"""deploy/compose.yaml: everything that it names, started here, and rotations through the proxy."""

from __future__ import annotations

import httpx
import pytest

from tests.deploy.machine import Machine

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("deploy"), pytest.mark.timeout(400)]


def test_up(machine: Machine) -> None:
    ca = machine.secrets / "tls-certificate.pem"
    print(httpx.get(f"{machine.url}/api/ready", verify=str(ca)))
    print(httpx.get(f"{machine.url}/api/metrics", verify=str(ca)))
    for name in machine.services: print(name, machine.log(name)[-600:])
    assert 0
