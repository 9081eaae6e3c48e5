"""Validation of mounts, paths and namespaces in Vault."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

MAX_PATH_CHARACTERS = 512


def valid_path(value: str, name: str) -> str:
    """Return a path without surrounding slashes; raise `ValueError` if Vault would not accept it."""
    text = value.strip().strip("/")
    dots = {"", ".", ".."} & set(text.split("/"))
    if dots or not text.isprintable() or len(text) > MAX_PATH_CHARACTERS:
        raise ValueError(
            f"{name} must be names separated by single slashes, without . and .., without control characters and at "
            f"most {MAX_PATH_CHARACTERS} characters long."
        )
    return text


Mount = Annotated[str, AfterValidator(lambda value: valid_path(value, "mount"))]
"""The mount path of a secrets engine or an auth method."""
