"""Run one stand-in in the foreground: `python -m sandbox openrouter --port 4100`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from starlette.applications import Starlette

from sandbox import infisical, openrouter, vault
from sandbox.server import serve

STAND_INS: dict[str, Callable[[], Starlette]] = {
    "openrouter": openrouter.create_app,
    "vault": vault.create_app,
    "infisical": infisical.create_app,
}


def main() -> None:
    """Serve the stand-in named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    parser.add_argument("stand_in", choices=STAND_INS)
    parser.add_argument("--port", type=int, required=True, help="port on loopback")
    chosen = parser.parse_args()
    serve(STAND_INS[chosen.stand_in](), chosen.port)


if __name__ == "__main__":
    main()
