"""The built wheel, installed outside of the checkout: alone, and beside the next version of itself."""

from __future__ import annotations

import json
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from prefect import get_client
from prefect.exceptions import ObjectNotFound

import blocks
from sandbox.server import Fault
from sandbox.stack import CHECKOUT
from tasks.model.ledger import FORMAT
from tests.by_hand import ledger_value
from tests.e2e.conftest import Services, with_long_waits
from tests.e2e.driver import begin_rotation, deploy_to, ended, retry, start
from tests.e2e.processes import check_converged, check_nothing_leaked, held_by, keys_of, traces
from tests.e2e.wheels import Environment, build, copy_of_source

pytestmark = with_long_waits

VERSION = version("key-rotation")
NEXT_VERSION = "99.0.0"
IN_THE_NEXT_VERSION = {
    "pyproject.toml": [(f'version = "{VERSION}"', f'version = "{NEXT_VERSION}"')],
    "tasks/model/ledger.py": [
        (f"FORMAT = {FORMAT}\n", f"FORMAT = {FORMAT + 1}\n"),
        ('    package: str = ""\n', '    package: str = ""\n    region: str = ""\n'),
        ("package=package, revision=", 'package=package, region="eu", revision='),
    ],
}
"""A next version whose ledgers have a new field that this version does not know."""
WHERE = """
import json, blocks, tasks, flows
from flows.automations import FOLDER
files = [module.__file__ for module in (blocks, tasks, flows)]
print(json.dumps(files + [str(file) for file in FOLDER.glob("*.yaml")]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    home = tmp_path_factory.mktemp("wheel")
    return build(copy_of_source(home / "source"), home)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel of this checkout."""
    return Environment(tmp_path_factory.mktemp("installed"), wheel)


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel of the next version."""
    home = tmp_path_factory.mktemp("upgraded")
    source = copy_of_source(home / "source")
    for name, changes in IN_THE_NEXT_VERSION.items():
        text = (source / name).read_text()
        for former, new in changes:
            assert text.count(former) == 1, f"{name} does not say {former!r} once"
            text = text.replace(former, new)
        (source / name).write_text(text)
    return Environment(home, build(source, home))


def test_the_wheel_holds_every_package_and_nothing_else(wheel: Path) -> None:
    """It contains each subpackage, each `py.typed` and each automation, but neither tests nor the sandbox."""
    packages = [CHECKOUT / name for name in ("blocks", "tasks", "flows")]
    expected = [file for package in packages for file in (*package.rglob("*.py"), package / "py.typed")]
    expected += (CHECKOUT / "automations").glob("*.yaml")

    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}

    assert held == {file.relative_to(CHECKOUT).as_posix() for file in expected}


async def test_the_installed_wheel_registers_its_blocks(services: Services, installed: Environment) -> None:
    """`prefect block register -m blocks` creates every block type on a server that had none of them."""
    slugs = [block.get_block_type_slug() for block in blocks.BLOCKS]
    async with get_client() as client:
        for slug in slugs:
            await forget_block_type(slug)

        installed.run(services.stack, "-m", "prefect", "block", "register", "-m", "blocks")

        assert [(await client.read_block_type_by_slug(slug)).slug for slug in slugs] == slugs


async def forget_block_type(slug: str) -> None:
    """Delete a block type, if it exists."""
    async with get_client() as client:
        try:
            found = await client.read_block_type_by_slug(slug)
        except ObjectNotFound:
            return
        await client.delete_block_type(found.id)


def test_what_is_imported_is_the_wheel(services: Services, installed: Environment) -> None:
    """The packages in the checkout have the same names, but none of them is imported."""
    files = [Path(file) for file in json.loads(installed.run(services.stack, "-c", WHERE))]

    assert len(files) > len(("blocks", "tasks", "flows"))
    assert [file for file in files if not file.is_relative_to(installed.packages)] == []


async def test_a_worker_with_the_wheel_rotates(services: Services, installed: Environment) -> None:
    """A worker outside of the checkout runs one rotation to every kind of destination."""
    await deploy_to("wheel")
    rotation = await services.prepare(
        services.rotation(destinations=["secret/w", "vault-secret/w", "infisical-secret/w"])
    )
    worker = installed.worker(services.stack, "wheel")
    try:
        run = await ended(await start(rotation, deployment_name="wheel"))
    finally:
        worker.stop()

    assert run.state_name == "Completed", run.state
    await check_converged(services, rotation)


async def test_two_versions_share_a_rotation(services: Services, installed: Environment, upgraded: Environment) -> None:
    """During a rolling upgrade, the newer version finishes what the older one left, and then the older one refuses."""
    # Given a rotation by the older version, and one that failed while it published
    rotation = await services.prepare(services.rotation(destinations=["secret/rolling", "vault-secret/rolling"]))
    assert (await installed.attempt(services.stack, await begin_rotation(rotation))).is_completed()
    unwritable = services.vault_app.state.faults.add(Fault("before", "POST", "/data/", status=403))
    begun = await begin_rotation(rotation)
    assert (await installed.attempt(services.stack, begun)).is_failed()
    services.vault_app.state.faults.rules.remove(unwritable)
    assert (await ledger_value(rotation.name))["pending"]["key"]

    # When the newer version retries it, then it is the same rotation that is finished
    await retry(begun)
    assert (await upgraded.attempt(services.stack, begun)).is_completed()
    value = await ledger_value(rotation.name)
    assert (value["format"], value["package"], value["region"]) == (FORMAT + 1, NEXT_VERSION, "eu")
    assert value["current"]["made_by"] == str(begun)
    assert len(services.openrouter.created) == 2

    # When the older version is asked once more, then it says one sentence and changes nothing
    before = await traces(services, rotation)
    refused_id = await begin_rotation(rotation)
    refused = await installed.attempt(services.stack, refused_id)
    assert refused.is_failed()
    assert refused.message == (
        f"The ledger of rotation {rotation.name} was written by a newer version of this package ({NEXT_VERSION}), "
        "so nothing was changed: upgrade this worker. "
        "Help: docs/how-to/troubleshooting.md#the-ledger-cannot-be-read-or-written"
    )
    assert await traces(services, rotation) == before

    # When that worker is upgraded, then Retry does what was asked for
    await retry(refused_id)
    assert (await upgraded.attempt(services.stack, refused_id)).is_completed()
    value = await ledger_value(rotation.name)
    keys = {key.hash: key.secret for key in keys_of(services, rotation)}
    assert set(keys) == {value["current"]["hash"], *(key["hash"] for key in value["superseded"])}
    assert await held_by(rotation) == {keys[value["current"]["hash"]]}
    assert value["current"]["made_by"] == str(refused_id)
    assert len(services.openrouter.created) == 3
    check_nothing_leaked(services)
