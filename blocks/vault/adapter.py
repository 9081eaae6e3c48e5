"""The adapter through which hvac sends each request."""

from __future__ import annotations

from typing import Any

import requests
from hvac.adapters import RawAdapter
from hvac.exceptions import VaultError

from blocks.exact import decoded, encoded


class ExactAdapter(RawAdapter):  # type: ignore[misc] # hvac has no types
    """Like hvac's `JSONAdapter`, but keeps each digit of other people's numbers, and attaches the response to errors.

    hvac itself reads and writes floats, and drops the status and Retry-After.
    """

    def get_login_token(self, response: Any) -> Any:
        """Return the token of a login."""
        return response["auth"]["client_token"]

    def request(
        self, method: str, url: str, headers: dict[str, str] | None = None, raise_exception: bool = True, **how: Any
    ) -> Any:
        """Make a request; return the JSON object of a 200, otherwise the response."""
        if how.get("json") is not None:
            headers = {"Content-Type": "application/json", **(headers or {})}
            how["data"] = _encoded(how.pop("json"))
        answer = super().request(method, url, headers, raise_exception=False, **how)
        body = _json_object(answer)
        if answer.status_code == requests.codes.ok and body is not None:
            return body
        if answer.ok or not raise_exception:
            return answer
        errors = body.get("errors") if body else None
        texts = [str(text) for text in errors] if isinstance(errors, list) else []
        error = VaultError.from_status(answer.status_code, f"Vault answered {answer.status_code}", texts, json=body)
        error.response = answer
        raise error


def _encoded(body: Any) -> bytes:
    try:
        return encoded(body)
    except ValueError:
        raise VaultError("The body cannot be sent.") from None


def _json_object(response: requests.Response) -> dict[str, Any] | None:
    try:
        body = decoded(response.content)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
