"""Lists of keys, workspaces and analytics of the OpenRouter stand-in, verified with OpenRouter's own Python SDK."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
from openrouter import errors

from tests.sandbox.conftest import StandIn

WEBHOOK = {"url": "https://tracing.example", "secret": "whsec-0123456789"}


def call(stand_in: StandIn, key: str, credential: str, app: str = "Billing") -> int:
    """Send a chat completion that requires a BYOK credential, and return the response's status."""
    body = {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"Authorization": f"Bearer {key}", "X-Title": app}
    path = f"/api/v1/chat/completions?byok={credential}"
    return int(stand_in.http.post(path, json=body, headers=headers).status_code)


def test_a_credential_lives_its_whole_life(stand_in: StandIn) -> None:
    """The SDK accepts the responses to create, get, update, list and delete; the provider key is never shown."""
    key = stand_in.new_key()
    with stand_in.sdk() as sdk:
        made = sdk.byok.create(key="sk-proj-0123456789", provider="openai", allowed_api_key_hashes=[key.hash]).data
        changed = sdk.byok.update(id=made.id, name="production", disabled=True).data
        listed = sdk.byok.list()
        read = sdk.byok.get(id=made.id).data
        deleted = sdk.byok.delete(id=made.id)

    assert (made.allowed_api_key_hashes, made.provider, made.workspace_id) == ([key.hash], "openai", key.workspace_id)
    assert (changed.name, changed.disabled, changed.allowed_api_key_hashes) == ("production", True, [key.hash])
    assert listed is not None
    assert [one.id for one in listed.result.data] == [read.id] == [made.id]
    assert "0123456789" not in str((made, changed, read))
    assert deleted.DELETED is True
    assert stand_in.state.credentials == {}


@pytest.mark.parametrize("hashes", [[], ["0" * 64], ["not a hash"], [*(f"{n:064x}" for n in range(101))]])
def test_a_list_of_other_than_live_keys_is_refused(stand_in: StandIn, hashes: list[str]) -> None:
    """An empty list, and unknown, malformed or too many hashes get 400, and the stored list does not change."""
    key = stand_in.new_key()
    credential = stand_in.state.add_credential(stand_in.state.accounts[0], None, allowed_api_key_hashes=[key.hash])

    with stand_in.sdk() as sdk, pytest.raises(errors.OpenRouterError) as refused:
        sdk.byok.update(id=credential["id"], allowed_api_key_hashes=hashes)

    assert refused.value.status_code == 400
    assert credential["allowed_api_key_hashes"] == [key.hash]


@pytest.mark.parametrize("how", ["deleted", "disabled", "expired", "of another account"])
def test_a_list_with_a_dead_key_cannot_be_changed(stand_in: StandIn, how: str) -> None:
    """A list that names a dead key is refused, even if it was stored with that key; the list without it is accepted."""
    key, dead = stand_in.new_key(), stand_in.new_key(expires_at="2026-12-01T00:00:00Z")
    credential = stand_in.state.add_credential(stand_in.state.accounts[0], None, allowed_api_key_hashes=[dead.hash])
    match how:
        case "deleted":
            stand_in.state.delete_key(dead)
        case "disabled":
            dead.disabled = True
        case "expired":
            stand_in.now += timedelta(days=1)
        case _:
            dead.account = stand_in.state.add_account("of another")

    with stand_in.sdk() as sdk:
        with pytest.raises(errors.OpenRouterError):
            sdk.byok.update(id=credential["id"], allowed_api_key_hashes=[dead.hash, key.hash])
        sdk.byok.update(id=credential["id"], allowed_api_key_hashes=[key.hash])

    assert credential["allowed_api_key_hashes"] == [key.hash]


def test_null_lifts_the_restriction(stand_in: StandIn) -> None:
    """A credential with `null` as its list serves every key."""
    key, other = stand_in.new_key(), stand_in.new_key()
    credential = stand_in.state.add_credential(stand_in.state.accounts[0], None, allowed_api_key_hashes=[key.hash])
    before = [call(stand_in, one.secret, credential["id"]) for one in (key, other)]

    with stand_in.sdk() as sdk:
        sdk.byok.update(id=credential["id"], allowed_api_key_hashes=None)

    assert before == [200, 403]
    assert [call(stand_in, one.secret, credential["id"]) for one in (key, other)] == [200, 200]


def test_a_call_with_a_provider_key_is_paid_with_it(stand_in: StandIn) -> None:
    """It counts as BYOK usage; a refused request counts as a failure of a consumer."""
    key = stand_in.new_key()
    credential = stand_in.state.add_credential(stand_in.state.accounts[0], None)

    served, refused = call(stand_in, key.secret, credential["id"]), call(stand_in, key.secret, "none")

    assert (served, refused) == (200, 403)
    assert stand_in.state.usage(key, byok=True) == stand_in.state.cost
    assert not stand_in.state.usage(key)
    assert stand_in.state.requests_failed == 1


def test_a_credential_is_listed_in_its_workspace(stand_in: StandIn) -> None:
    """A credential without a workspace is listed in every workspace."""
    account = stand_in.state.accounts[0]
    account.workspaces.append("11111111-2222-3333-4444-555555555555")
    here = stand_in.state.add_credential(account, account.workspaces[1])["id"]
    everywhere = stand_in.state.add_credential(account, None)["id"]

    with stand_in.sdk() as sdk:
        found: list[Any] = [sdk.byok.list(workspace_id=one) for one in (None, account.workspaces[1])]

    assert [[one.id for one in each.result.data] for each in found] == [[everywhere], [here, everywhere]]


def test_a_broadcast_destination_lives_its_whole_life(stand_in: StandIn) -> None:
    """The SDK accepts the responses to create, get, update, list and delete; secrets are masked."""
    key = stand_in.new_key()
    with stand_in.sdk() as sdk:
        made = sdk.observability.create(config=WEBHOOK, name="tracing", type_="webhook", api_key_hashes=[key.hash])
        made_id = made.data.id
        sdk.observability.update(id=made_id, enabled=False)
        listed: Any = sdk.observability.list()
        read: Any = sdk.observability.get(id=made_id).data
        deleted = sdk.observability.delete(id=made_id)

    assert (read.enabled, read.api_key_hashes, read.type) == (False, [key.hash], "webhook")
    assert [one.id for one in listed.result.data] == [made_id]
    assert "whsec-0123456789" not in str(read)
    assert deleted.DELETED is True


def test_a_sixth_destination_of_a_type_is_refused(stand_in: StandIn) -> None:
    """OpenRouter permits five destinations of each type."""
    with stand_in.sdk() as sdk:
        for number in range(5):
            sdk.observability.create(config=WEBHOOK, name=f"tracing {number}", type_="webhook")
        with pytest.raises(errors.OpenRouterError):
            sdk.observability.create(config=WEBHOOK, name="one more", type_="webhook")


def test_the_analytics_tell_who_uses_a_key(stand_in: StandIn) -> None:
    """They group the requests of one key, selected by its hash, by application, model and minute."""
    key, other = stand_in.new_key(), stand_in.new_key()
    credential = stand_in.state.add_credential(stand_in.state.accounts[0], None)["id"]
    for one, app in ((key, "Billing"), (key, "Billing"), (other, "Search")):
        call(stand_in, one.secret, credential, app)

    filters: Any = [{"field": "api_key_id", "operator": "eq", "value": key.hash}]
    query: Any = {"metrics": ["request_count"], "dimensions": ["app", "model"], "granularity": "minute"}
    with stand_in.sdk() as sdk:
        meta: Any = sdk.analytics.get_analytics_meta().data
        found: Any = sdk.analytics.query_analytics(**query, filters=filters).data
    # The SDK parses the rows but drops their fields.
    [row] = stand_in.manage("POST", "/analytics/query", {**query, "filters": filters}).json()["data"]["data"]

    assert {"app", "model"} <= {one.name for one in meta.dimensions}
    assert found.metadata.row_count == 1
    assert (row["app"], row["model"], row["request_count"]) == ("Billing", "openai/gpt-4o", 2)
    assert row["date__minute"].startswith("2026-11-30T23:00:00")


def test_a_hash_that_is_not_known_is_a_warning(stand_in: StandIn) -> None:
    """The query ignores the unknown hash, and covers every key."""
    key = stand_in.new_key()
    call(stand_in, key.secret, stand_in.state.add_credential(stand_in.state.accounts[0], None)["id"])
    wanted = [{"field": "api_key_id", "operator": "eq", "value": "0" * 64}]

    answer = stand_in.manage("POST", "/analytics/query", {"metrics": ["request_count"], "filters": wanted}).json()

    assert answer["data"]["warnings"]
    assert answer["data"]["data"] == [{"request_count": 1}]


def test_a_workspace_logs_chosen_keys(stand_in: StandIn) -> None:
    """The workspace names them by numeric ids, which the API does not show for a key."""
    workspace = stand_in.state.accounts[0].workspaces[0]
    with stand_in.sdk() as sdk:
        sdk.workspaces.update(id=workspace, is_observability_io_logging_enabled=True, io_logging_api_key_ids=[7])
        read = sdk.workspaces.get(id="default").data

    assert (read.id, read.io_logging_api_key_ids) == (workspace, [7])


@pytest.mark.parametrize("byok", [False, True])
def test_a_budget_of_a_workspace_is_kept(stand_in: StandIn, byok: bool) -> None:
    """A request beyond the budget gets 403 until the period ends; BYOK usage counts only if the budget includes it."""
    key = stand_in.new_key()
    credential = stand_in.state.add_credential(stand_in.state.accounts[0], None)["id"]
    with stand_in.sdk() as sdk:
        sdk.workspaces.set_budget(
            workspace_ref=key.workspace_id, interval="daily", limit_usd=0.0015, include_byok_in_budgets=byok
        )
        listed = sdk.workspaces.list_budgets(workspace_ref=key.workspace_id)

    spent = [call(stand_in, key.secret, credential) for _ in range(2)]
    stand_in.now += timedelta(hours=1)

    assert listed.include_byok_in_budgets is byok
    assert spent == [200, 403 if byok else 200]
    assert call(stand_in, key.secret, credential) == 200


def test_a_narrower_budget_is_smaller(stand_in: StandIn) -> None:
    """A daily budget must be lower than the monthly one."""
    workspace = stand_in.state.accounts[0].workspaces[0]
    with stand_in.sdk() as sdk:
        sdk.workspaces.set_budget(workspace_ref=workspace, interval="monthly", limit_usd=10)
        with pytest.raises(errors.OpenRouterError):
            sdk.workspaces.set_budget(workspace_ref=workspace, interval="daily", limit_usd=10)


@pytest.mark.parametrize("part", ["workspaces", "guardrails", "byok", "observability", "analytics"])
@pytest.mark.parametrize("status", [403, 404])
def test_any_part_can_be_lacking(stand_in: StandIn, part: str, status: int) -> None:
    """With a management key, the part answers with the configured status; without a key, with 401 as usual."""
    paths = {"observability": "/observability/destinations", "analytics": "/analytics/meta"}
    changed = httpx.patch(f"{stand_in.url}/_sandbox/options", json={"lacks": {part: status}})

    answer = stand_in.manage("GET", paths.get(part, f"/{part}"))

    assert changed.status_code == 200
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)
    assert stand_in.http.get(f"/api/v1{paths.get(part, f'/{part}')}").status_code == 401


@pytest.mark.parametrize(("chosen", "status"), [(None, 200), (400, 400), (404, 404)])
def test_a_list_of_the_keys_of_an_unknown_workspace_is_empty_or_refused(
    stand_in: StandIn, chosen: int | None, status: int
) -> None:
    """OpenRouter does not document which, so both are configurable; lists of known workspaces are not affected."""
    workspace = stand_in.state.accounts[0].workspaces[0]
    changed = httpx.patch(f"{stand_in.url}/_sandbox/options", json={"unknown_workspace_status": chosen})

    answers = [stand_in.manage("GET", f"/keys?workspace_id={each}") for each in ("deleted", workspace)]

    assert changed.status_code == 200
    assert [answer.status_code for answer in answers] == [status, 200]


@pytest.mark.parametrize("wrong", [{"lacks": {"keys": 404}}, {"lacks": {"byok": 500}}, {"lacks": 404}, {"byok": 7}])
def test_what_cannot_be_lacking_is_refused(stand_in: StandIn, wrong: dict[str, Any]) -> None:
    """Keys are always available, and a missing part answers 403 or 404."""
    assert httpx.patch(f"{stand_in.url}/_sandbox/options", json=wrong).status_code == 400
