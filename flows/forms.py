"""The fields of a flow's form: labels, validation, and errors that are reported all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from prefect.blocks.core import Block
from prefect.client.utilities import get_or_create_client
from prefect.exceptions import ObjectNotFound
from pydantic import Field

from blocks.errors import ConfigurationError
from tasks.world.api import api_errors

UNCHANGED: Final = "unchanged"
"""The option of a choice that keeps the present value."""


def form_field(text: str, **schema: Any) -> Any:
    """Return the metadata, for `Annotated`, that labels a flow's parameter in the dashboard.

    Prefect overwrites `Field(title=...)` with the parameter's name, but merges `json_schema_extra` into the schema
    that the deployment stores (`prefect.utilities.callables.parameter_schema`, prefect 3.8.8).

    Args:
        text: The label.
        **schema: Keywords of JSON Schema, such as `pattern`, which Prefect checks before the form is submitted.

    Returns:
        The metadata.
    """
    return Field(json_schema_extra={"title": text, **schema})


def given(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a form that were filled in."""
    filled: dict[str, Any] = {}
    for name, value in form.items():
        if isinstance(value, Mapping) and "$ref" not in value:
            filled |= {name: inner} if (inner := given(value)) else {}
        elif not (value is None or value in (UNCHANGED, []) or (isinstance(value, str) and not value.strip())):
            filled[name] = value
    return filled


class Refusals:
    """Collects the errors of a form, so that all are reported at once."""

    def __init__(self) -> None:
        self._found: list[ConfigurationError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collect a refusal raised in the body, so that the remaining fields are validated too."""
        try:
            yield
        except ConfigurationError as error:
            self._found += [error]

    def raise_all(self) -> None:
        """Raise all collected refusals as one error.

        Raises:
            ConfigurationError: There was at least one.
        """
        if self._found:
            raise ConfigurationError.combine(self._found)


async def block_name(value: Any, field: str) -> str:
    """Return `<block type slug>/<name>` of the block picked in a form, without loading its secrets.

    Args:
        value: A block, Prefect's stored reference to one, or its name.
        field: The field of the form, for error messages.

    Raises:
        ConfigurationError: The block does not exist.
    """
    reference = value.get("$ref") if isinstance(value, dict) else value
    if isinstance(reference, dict) and "block_document_slug" in reference:
        return str(reference["block_document_slug"])
    if isinstance(reference, str) and not isinstance(value, dict):
        return reference
    document_id = reference.get("block_document_id") if isinstance(reference, dict) else reference
    if isinstance(reference, Block):
        document_id = reference._block_document_id  # noqa: SLF001 - Prefect has no public accessor
    try:
        wanted = UUID(str(document_id))
        with api_errors("looking a block up"):
            client, _ = get_or_create_client()
            document = await client.read_block_document(wanted, include_secrets=False)
    except (ObjectNotFound, ValueError):
        raise ConfigurationError(f"{field}: choose a block that is stored under Blocks. Nothing was created.") from None
    slug = document.block_type.slug if document.block_type else ""
    return f"{slug}/{document.name}"
