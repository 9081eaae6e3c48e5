"""Every field of every form in the dashboard is described in one line."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

import blocks
import flows
from flows.forms import given

Schema = dict[str, Any]

BLOCKS = blocks.BLOCKS
FLOWS = [flow for flow in vars(flows).values() if isinstance(flow, Flow) and inspect.signature(flow.fn).parameters]
FORMS: dict[str, Schema] = {
    **{block.__name__: block.model_json_schema() for block in BLOCKS},
    **{flow.name: parameter_schema(flow).model_dump() for flow in FLOWS},
}
GROUPS = {"rotate.rotation.key", "rotate.rotation.retirement"}
"""Groups of fields, which have title and description where they are defined."""


def definitions(form: Schema) -> dict[str, Schema]:
    """Return the schemas to which the fields of a form refer."""
    return {**form.get("$defs", {}), **form.get("definitions", {})}


def fields(schema: Schema, path: str, defined: dict[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """Yield all fields, including those of groups, lists and choices."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        # A block's reference to another block is picked from a list, and not filled in here.
        yield from fields(defined.get(name, {}), path, {other: defined[other] for other in defined if other != name})
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from fields(part, path, defined)
    if "items" in schema:
        yield from fields(schema["items"], path, defined)
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}", defined)


def is_one_line(text: object) -> bool:
    """Return whether a text is non-empty and fits into one line of a form."""
    return isinstance(text, str) and bool(text) and "\n" not in text


def test_every_form_is_looked_at() -> None:
    """This covers every block and every flow that people fill in."""
    assert {"VaultCredentials", "OpenRouterCredentials", "InfisicalSecret", "rotate", "add-rotation"} <= set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_every_field_has_a_title_and_a_description_of_one_line(name: str) -> None:
    """A newcomer must be able to fill it in without help."""
    found = list(fields(FORMS[name], name, definitions(FORMS[name])))

    silent = {path for path, field in found if not (field.get("title") and is_one_line(field.get("description")))}

    assert found
    assert silent - GROUPS == set()


def test_the_form_of_add_rotation_is_labelled_as_a_wizard() -> None:
    """By default, Prefect would label each field with the name of its parameter."""
    asked = sorted(FORMS["add-rotation"]["properties"].values(), key=lambda field: field["position"])

    assert [field["title"] for field in asked] == [
        "Connection",
        "Rotate on a schedule",
        "Rotate at",
        "Time zone",
        "Spread",
        "Interval in days",
        "Key name",
        "Limit (USD)",
        "Limit reset",
        "Include BYOK in the limit",
        "Destinations",
        "Other destinations",
        "Overwrite",
        "Overlap",
        "Rotation name",
        "Description",
        "Make the first key now",
        "Review only",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotation_name", "Not A Slug"),
        ("rotation_name", "a" * 61),
        ("rotate_at", "half past three"),
        ("spread", "two hours"),
        ("interval_days", 0),
        ("limit_usd", -1),
        ("limit_reset", "hourly"),
        ("overlap", "48 bananas"),
        ("other_destinations", ["secret"]),
        ("overwrite", ["not a block"]),
        ("auto_rotation", "false"),
    ],
)
def test_prefect_refuses_before_submit_what_its_schema_can_say(field: str, value: object) -> None:
    """The dashboard asks Prefect for these errors, and shows them at the field."""
    wrong = validate({"rotation_name": "checkout", field: value}, FORMS["add-rotation"])

    assert [next(iter(error.path)) for error in wrong] == [field]


def test_a_form_that_names_only_the_rotation_may_be_submitted() -> None:
    """The values that the dashboard sends for untouched fields are accepted."""
    left_alone = {
        name: each["default"] for name, each in FORMS["add-rotation"]["properties"].items() if "default" in each
    }

    assert validate({**left_alone, "rotation_name": "checkout"}, FORMS["add-rotation"]) == []
    assert set(given(left_alone)) == {"make_key_now", "review_only"}


@pytest.mark.parametrize("name", [flow.name for flow in FLOWS])
def test_no_parameter_is_labelled_with_its_own_name(name: str) -> None:
    """People read words, not identifiers."""
    titles = {parameter: field["title"] for parameter, field in FORMS[name]["properties"].items()}

    assert {parameter for parameter, title in titles.items() if title == parameter} == set()


@pytest.mark.parametrize("name", FORMS)
def test_every_group_of_fields_says_in_one_line_what_it_is(name: str) -> None:
    """A docstring with a list of attributes is for readers of the code, not for a form."""
    groups = {group: schema for group, schema in definitions(FORMS[name]).items() if "properties" in schema}

    wordy = {group for group, schema in groups.items() if not is_one_line(schema.get("description"))}

    assert wordy == set()
