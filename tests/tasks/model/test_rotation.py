"""A person's input for a rotation, and the names of its keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.utilities.callables import parameter_schema

from blocks.errors import ConfigurationError
from flows import rotate
from tasks.model.keys import marker, read_marker, without_marker
from tasks.model.rotation import MAX_KEY_NAME, Rotation, parse_rotation

TODAY = datetime(2026, 12, 1, 23, 59, tzinfo=UTC)


def filled_in(**changes: Any) -> dict[str, Any]:
    """Return the simplest rotation as a form sends it, with changes; a dotted name addresses a field of the key."""
    rotation: dict[str, Any] = {
        "name": "checkout",
        "connection": "openrouter",
        "key": {"name": "checkout"},
        "destinations": ["secret/checkout"],
    }
    for name, value in changes.items():
        place, _, inner = name.partition("__")
        if inner:
            rotation[place] = {**rotation[place], inner: value}
        else:
            rotation[place] = value
    return rotation


def test_the_simplest_rotation_needs_four_things() -> None:
    """Name, connection, key name and one destination suffice; the default overlap is a day."""
    rotation = parse_rotation(filled_in())

    assert rotation.overlap == timedelta(hours=24)
    assert rotation.key.limit_usd is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Check Out"}, "rotation.name"),
        ({"name": "checkout-"}, "rotation.name"),
        ({"name": "a" * 61}, "rotation.name"),
        ({"name": "checkout\n"}, "rotation.name"),
        ({"name": "сheckout"}, "rotation.name"),  # noqa: RUF001 - the first letter is Cyrillic
        ({"connection": "../other"}, "rotation.connection"),
        ({"destinations": []}, "rotation.destinations"),
        ({"destinations": ["secret/a", "secret/a"]}, "rotation.destinations"),
        ({"destinations": ["secret"]}, "rotation.destinations"),
        ({"destinations": ["secret/../a"]}, "rotation.destinations"),
        ({"key__limit_usd": -1}, "rotation.key.limit_usd"),
        ({"key__limit_usd": float("nan")}, "rotation.key.limit_usd"),
        ({"key__limit_usd": float("inf")}, "rotation.key.limit_usd"),
        ({"key__limit_reset": "monthly"}, "limit_reset"),
        ({"key__limit_reset": "hourly", "key__limit_usd": 1}, "rotation.key.limit_reset"),
        ({"key__name": " "}, "rotation.key.name"),
        ({"key__name": "two\nlines"}, "rotation.key.name"),
        ({"key__name": "k" * MAX_KEY_NAME}, "key.name"),
        ({"overlap": "-PT1S"}, "rotation.overlap"),
        ({"overlap": "48 bananas"}, "rotation.overlap"),
        ({"surprise": 1}, "rotation.surprise"),
    ],
)
def test_bad_input_is_refused_with_one_sentence_that_names_the_field(changes: dict[str, Any], field: str) -> None:
    """A rotation that cannot work is refused before anything is created."""
    with pytest.raises(ConfigurationError) as refused:
        parse_rotation(filled_in(**changes))

    assert field in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("Nothing was created.")


def test_everything_that_is_wrong_is_told_at_once_in_our_own_words() -> None:
    """Each wrong field has a sentence, so that one correction suffices; the last one says that nothing was created."""
    wrong = {"name": "A b", "overlap": "a day", "key__limit_usd": -1, "key__limit_reset": "hourly", "surprise": 1}

    with pytest.raises(ConfigurationError) as refused:
        parse_rotation(filled_in(**wrong))

    assert str(refused.value) == (
        "rotation.name: must be 1 to 60 lowercase letters and digits, in words joined by single dashes. "
        "rotation.key.limit_usd: must be an amount in US dollars, not negative, with at most 6 decimals. "
        "rotation.key.limit_reset: must be none, daily, weekly or monthly. "
        "rotation.overlap: must be a duration, such as 24h, 7d or PT24H. "
        "rotation.surprise: there is no such setting. Nothing was created."
    )


def test_what_was_refused_is_not_quoted() -> None:
    """The message does not repeat a secret that was pasted into the wrong field."""
    with pytest.raises(ConfigurationError) as refused:
        parse_rotation(filled_in(name="sk-or-v1-SECRET"))

    assert "SECRET" not in str(refused.value)


@given(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text()), st.dictionaries(st.text(), st.text())))
def test_anything_that_is_no_rotation_is_refused_plainly(value: Any) -> None:
    """Any other parameter leads to one sentence, never to a traceback."""
    with pytest.raises(ConfigurationError):
        parse_rotation(value)


def test_the_keys_name_tells_a_person_where_it_comes_from() -> None:
    """The name at OpenRouter contains the chosen name, the UTC date, rotation, installation, and the run's id."""
    run_id = UUID("0c9c1f0e-0000-4000-8000-000000000001")

    name = parse_rotation(filled_in()).key_name(run_id, TODAY, "abcdefg")

    assert name == "[rotation checkout abcdefg/0c9c1f0e000040008000000000000001] checkout 2026-12-01"


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip() and text.isprintable()))
def test_a_marker_is_found_again_whatever_the_user_calls_the_key(name: str) -> None:
    """The marker is recognised in any key name, even in one that imitates a marker."""
    run_id = uuid4()

    key_name = parse_rotation(filled_in(key__name=name)).key_name(run_id, TODAY, "abcdefg")

    assert read_marker(key_name) == ("checkout", run_id, "abcdefg")
    assert len(key_name) <= MAX_KEY_NAME


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip() and text.isprintable()), st.booleans())
def test_a_cut_at_the_end_leaves_the_marker(name: str, imitates: bool) -> None:
    """However OpenRouter truncates a name, the key is recognised as long as its marker fits."""
    run_id, other = uuid4(), marker("other", uuid4(), "gfedcba")
    rotation = parse_rotation(filled_in(key__name=f"{other} {name}"[:80] if imitates else name))

    cut = rotation.key_name(run_id, TODAY, "abcdefg")[: len(marker("checkout", run_id, "abcdefg")) + 5]

    assert read_marker(cut) == ("checkout", run_id, "abcdefg")


def test_a_marker_is_no_longer_than_that_of_an_earlier_version() -> None:
    """The maximum length of a key's name stays the same, so that no rotation is refused after an upgrade."""
    assert len(marker("checkout", uuid4(), "abcdefg")) <= len(marker("checkout", uuid4()))


def test_the_marker_of_an_earlier_version_is_read_at_the_end() -> None:
    """Earlier versions put the marker at the end, without an installation; their keys are still recognised."""
    run_id, other = uuid4(), uuid4()
    name = f"{marker('other', other)} my key 2026-12-01 {marker('checkout', run_id)}"

    assert read_marker(name) == ("checkout", run_id, "")
    assert without_marker(name) == f"{marker('other', other)} my key 2026-12-01"


def test_a_name_without_its_marker_is_the_users() -> None:
    """Without its marker, a key's name is what the person chose, with the date."""
    name = parse_rotation(filled_in()).key_name(uuid4(), TODAY)

    assert without_marker(name) == "checkout 2026-12-01"
    assert without_marker("by hand") == "by hand"


@pytest.mark.parametrize("name", ["my key", "", "[rotation checkout run 1]", "x [rotation checkout run ] y"])
def test_a_key_without_a_marker_is_nobodys(name: str) -> None:
    """A name without a marker belongs to a key that no rotation made."""
    assert read_marker(name) is None


def test_money_stays_exact() -> None:
    """A limit of ten cents is exactly ten cents, and not the nearest binary fraction."""
    assert parse_rotation(filled_in(key__limit_usd=0.1)).key.limit_usd == Decimal("0.1")


def test_a_rotation_survives_the_way_through_a_deployment() -> None:
    """A rotation that a deployment stores as JSON is read back unchanged."""
    rotation = parse_rotation(filled_in(key__limit_usd=12.5, overlap="P7D"))

    assert Rotation.model_validate(rotation.model_dump(mode="json")) == rotation


def fields(schema: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Return the fields of a group in the form; a field that is a group itself brings its own title and description."""
    group: dict[str, dict[str, Any]] = schema["definitions"][name]["properties"]
    inner = {
        field: schema["definitions"].get(shown.get("$ref", "").rpartition("/")[2], {}) for field, shown in group.items()
    }
    return {field: {**inner[field], **shown} for field, shown in group.items()}


FORM = parameter_schema(rotate).model_dump()
GROUPS = ("Rotation", "KeySettings", "Retirement")


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_of_the_form_explains_itself_in_one_line(group: str) -> None:
    """Each field has a title and a description of one sentence."""
    for name, field in fields(FORM, group).items():
        described = field.get("description", "")
        assert field.get("title"), name
        assert field["title"][0].isupper(), name
        assert 10 < len(described) <= 120, name
        assert described.endswith("."), name


def test_the_simplest_rotation_needs_four_answers() -> None:
    """Name, connection, key name and one destination are required; everything else has a sensible default."""
    required = {group: set(FORM["definitions"][group].get("required", [])) for group in GROUPS}

    assert required == {
        "Rotation": {"name", "connection", "key", "destinations"},
        "KeySettings": {"name"},
        "Retirement": set(),
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"retirement": {"retire_when": "never"}}, "rotation.retirement.retire_when"),
        ({"retirement": {"retire_when": "unused", "quiet_time": "PT0S"}}, "quiet_time"),
        ({"retirement": {"retire_when": "unused", "max_overlap": "PT1H"}}, "retirement.max_overlap"),
        ({"retirement": {"disabled_for": "-P1D"}}, "rotation.retirement.disabled_for"),
        ({"minimum_age": "-P1D"}, "rotation.minimum_age"),
        ({"destinations": [f"secret/{n}-{'a' * 200}" for n in range(5)]}, "rotation.destinations"),
        ({"adopt": "sk-or-v1-" + "0" * 64}, "rotation.adopt"),
        ({"adopt": "../keys"}, "rotation.adopt"),
        ({"key__guardrail_id": "a/b"}, "rotation.key.guardrail_id"),
        ({"key__carry_budget": True}, "carry_budget"),
        ({"key__expires_after": "P1D"}, "key.expires_after"),
    ],
)
def test_policies_that_cannot_work_are_refused(changes: dict[str, Any], field: str) -> None:
    """One sentence names the field, before anything is created."""
    with pytest.raises(ConfigurationError) as refused:
        parse_rotation(filled_in(**changes))

    assert field in str(refused.value)
    assert "0000" not in str(refused.value)
    assert str(refused.value).endswith("Nothing was created.")
