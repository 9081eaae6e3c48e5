"""Links to the dashboard, for artifacts."""

from __future__ import annotations

from uuid import UUID

from prefect.settings import PREFECT_UI_URL
from prefect.utilities.urls import url_for


def page_url(kind: str, object_id: UUID | str) -> str:
    """Return the address of an object in the dashboard; empty if the dashboard's address is unknown.

    Args:
        kind: The object's type, as named by `prefect.utilities.urls.url_for`.
        object_id: The object's id.
    """
    return url_for(kind, object_id) or ""


def artifact_url(key: str) -> str:
    """Return the address of the newest artifact with a key; empty if the dashboard's address is unknown."""
    # Prefect's `url_for` does not support artifacts.
    dashboard = PREFECT_UI_URL.value()
    return f"{dashboard.rstrip('/')}/artifacts/key/{key}" if dashboard else ""


def linked(text: str, url: str) -> str:
    """Return a Markdown link; the text alone without an address."""
    return f"[{text}]({url})" if url else text


def link(kind: str, object_id: UUID, text: str) -> str:
    """Return a Markdown link to an object in the dashboard; the text alone if the dashboard's address is unknown.

    Args:
        kind: The object's type, as named by `prefect.utilities.urls.url_for`.
        object_id: The object's id.
        text: The link's text.
    """
    return linked(text, page_url(kind, object_id))
