"""A process that runs one rotation and can be killed: `python run_rotation.py '<rotation as JSON>'`."""

from __future__ import annotations

import asyncio
import json
import sys

from flows import rotate

if __name__ == "__main__":
    asyncio.run(rotate(json.loads(sys.argv[1]), return_state=True))
