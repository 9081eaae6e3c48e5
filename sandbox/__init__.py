"""Local stand-ins and a local Prefect, for the demo, the tests and the benchmarks.

Prefect reads the user's profile while it is imported. Python imports a package before the modules in it, so the process
is isolated here: no module of this package can import Prefect earlier.
"""

from sandbox.isolation import isolate_prefect

isolate_prefect()
