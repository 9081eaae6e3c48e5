"""Write thousands of rotations and their old runs directly into PostgreSQL; through the API, it would take hours."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
from cryptography.fernet import Fernet
from prefect import get_client
from prefect.blocks.system import Secret
from pydantic import SecretStr

from bench.measuring import Bench, rotation
from flows import rotate
from flows.deployments import save_deployment
from sandbox.openrouter_account import StoredKey
from tasks.model.keys import NOT_YET_ROTATED, fingerprint, marker
from tasks.world.installation import read_or_make_installation
from tasks.world.ledgers import read_ledger, term_variable

TEMPLATE = "scale-template"
"""The rotation that is copied."""
COPY_DEPLOYMENTS = """
INSERT INTO deployment SELECT copy.* FROM made, deployment template, LATERAL jsonb_populate_record(template,
  jsonb_build_object('id', made.deployment_id, 'name', made.name, 'parameters', made.parameters,
    'tags', jsonb_build_array('key-rotation', made.name))) copy
WHERE template.name = $1
"""
COPY_SECRETS = """
INSERT INTO block_document SELECT copy.* FROM made, block_document template, LATERAL jsonb_populate_record(template,
  jsonb_build_object('id', gen_random_uuid(), 'name', made.name, 'data', made.secret)) copy
WHERE template.name = $1
"""
COPY_LEDGERS = """
INSERT INTO variable SELECT copy.* FROM made, variable template, LATERAL jsonb_populate_record(template,
  jsonb_build_object('id', gen_random_uuid(), 'name', made.variable, 'value', made.ledger,
    'tags', jsonb_build_array('key-rotation', made.name))) copy
WHERE template.name = $1
"""
OLD_RUNS = """
CREATE TEMP TABLE old AS SELECT made.*, gen_random_uuid() AS run_id, gen_random_uuid() AS state_id,
  now() - day * interval '1 day' - made.number * interval '1 second' AS at
FROM made, generate_series(1, $1::int) day
"""
COPY_RUNS = """
INSERT INTO flow_run SELECT copy.* FROM old, flow_run template, LATERAL jsonb_populate_record(template,
  jsonb_build_object('id', old.run_id, 'name', 'rotate ' || old.name, 'deployment_id', old.deployment_id,
    'parameters', old.parameters, 'tags', jsonb_build_array('key-rotation', old.name), 'idempotency_key', old.run_id,
    'state_id', NULL, 'state_timestamp', old.at, 'expected_start_time', old.at, 'start_time', old.at,
    'end_time', old.at + interval '1 second')) copy
WHERE template.id = $1
"""
COPY_STATES = """
INSERT INTO flow_run_state SELECT copy.* FROM old, flow_run run, flow_run_state template,
  LATERAL jsonb_populate_record(template, jsonb_build_object('id', old.state_id, 'flow_run_id', old.run_id,
    'timestamp', old.at)) copy
WHERE run.id = $1 AND template.id = run.state_id
"""
POINT_TO_STATES = "UPDATE flow_run SET state_id = old.state_id FROM old WHERE flow_run.id = old.run_id"


async def make_template() -> None:
    """Deploy the rotation to copy, and run it once."""
    await Secret(value=NOT_YET_ROTATED).asave(TEMPLATE, overwrite=True)
    subject = rotation(TEMPLATE, f"secret/{TEMPLATE}")
    await save_deployment(None, subject, None, active=False)
    state = await rotate(subject, return_state=True)
    assert state.is_completed(), state.message


async def multiply(bench: Bench, address: str, rotations: int, runs_each: int) -> None:
    """Copy the template: deployments, destinations, ledgers with a live key each, and old runs.

    Args:
        bench: The setup.
        address: The address of the database, without a scheme.
        rotations: The total number of rotations afterwards.
        runs_each: The number of old runs of each one.
    """
    async with get_client() as client:
        [run] = await client.read_flow_runs(limit=1)
        deployment = await client.read_deployment_by_name(f"rotate/{TEMPLATE}")
    ledger = (await read_ledger(TEMPLATE)).to_json()
    installation, account = await read_or_make_installation(), bench.sandbox.accounts[0]
    seal = Fernet(bench.stack.env["PREFECT_SERVER_ENCRYPTION_KEY"].encode())
    made = []
    for number in range(rotations - 1):
        name = f"scale-{number}"
        key = bench.sandbox.add_key(
            account, {"name": f"{marker(name, run.id, installation)} bench", "limit": 50, "limit_reset": "monthly"}
        )
        parameters = json.dumps(deployment.parameters).replace(TEMPLATE, name)
        secret = seal.encrypt(json.dumps({"value": key.secret}).encode()).decode()
        made.append(
            (number, name, term_variable(name, 1), parameters, json.dumps(_with_key(ledger, name, key)), secret)
        )
    database = await asyncpg.connect(f"postgresql://{address}")
    try:
        await _copy(database, made, runs_each, run.id)
    finally:
        await database.close()


def _with_key(ledger: dict[str, Any], name: str, key: StoredKey) -> dict[str, Any]:
    of_key = {"hash": key.hash, "label": key.label, "fingerprint": fingerprint(SecretStr(key.secret))}
    copied: dict[str, Any] = json.loads(json.dumps(ledger).replace(TEMPLATE, name))
    return {**copied, "current": {**copied["current"], **of_key}}


async def _copy(database: Any, made: list[tuple[Any, ...]], runs_each: int, run_id: Any) -> None:
    await database.execute(
        "CREATE TEMP TABLE made (number int, name text, variable text, parameters jsonb, ledger jsonb, secret text, "
        "deployment_id uuid DEFAULT gen_random_uuid())"
    )
    columns = ["number", "name", "variable", "parameters", "ledger", "secret"]
    await database.copy_records_to_table("made", records=made, columns=columns)
    for statement in (COPY_DEPLOYMENTS, COPY_SECRETS):
        await database.execute(statement, TEMPLATE)
    await database.execute(COPY_LEDGERS, term_variable(TEMPLATE, 1))
    await database.execute(OLD_RUNS.replace("$1", str(runs_each)))
    for statement in (COPY_RUNS, COPY_STATES):
        await database.execute(statement, run_id)
    await database.execute(POINT_TO_STATES)
    await database.execute("ANALYZE")
