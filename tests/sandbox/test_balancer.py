"""The load balancer, with some of its servers down."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.responses import Response

from sandbox.balancer import NGINX, start_balancer
from sandbox.server import running
from sandbox.stack import free_port


@pytest.mark.parametrize(
    "program",
    [pytest.param(NGINX, marks=pytest.mark.skipif(NGINX is None, reason="nginx is not installed")), None],
    ids=["nginx", "forwarder"],
)
def test_a_server_that_is_down_costs_no_request(
    program: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request reaches a server that is up, both with nginx and with the forwarder."""
    monkeypatch.setattr("sandbox.balancer.NGINX", program)
    (tmp_path / "logs").mkdir()
    with running(Response("up")) as url:
        up, port = urlsplit(url).port or 0, free_port()
        balancer = start_balancer(tmp_path, port, [free_port(), up])
        try:
            answers = [httpx.get(f"http://127.0.0.1:{port}/", timeout=10).text for _ in range(4)]
        finally:
            balancer.stop()

    assert answers == ["up"] * 4
