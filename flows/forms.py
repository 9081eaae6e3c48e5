"""The labels of the fields in a flow's form."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def label(text: str) -> Any:
    """Return the metadata, for `Annotated`, that labels a flow's parameter in the dashboard.

    Prefect overwrites `Field(title=...)` with the parameter's name, but merges `json_schema_extra` into the schema
    that the deployment stores (`prefect.utilities.callables.parameter_schema`, prefect 3.8.8).

    Args:
        text: The label.

    Returns:
        The metadata.
    """
    return Field(json_schema_extra={"title": text})
