"""Local stand-ins and a local Prefect, for the demo, the tests and the benchmarks.

Prefect reads the user's profile when it is imported. Python imports a package before its modules, so this file isolates
the process before any module of the package can import Prefect.
"""

from sandbox.isolation import isolate_prefect

isolate_prefect()
