"""The URLs to which a credential may be sent."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.urls import is_loopback, safe_base_url


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1"),
        ("https://vault.example:8200/", "https://vault.example:8200"),
        ("  https://vault.example ", "https://vault.example"),
        ("https://[2001:db8::1]:8200", "https://[2001:db8::1]:8200"),
        ("http://127.0.0.1:4100", "http://127.0.0.1:4100"),
        ("http://localhost:4100/api/", "http://localhost:4100/api"),
        ("http://[::1]:4100", "http://[::1]:4100"),
        ("HTTPS://Vault.Example:443/", "https://vault.example"),
        ("https://gateway.example/Team-A/", "https://gateway.example/Team-A"),
    ],
)
def test_https_and_loopback_are_accepted(value: str, expected: str) -> None:
    """An https URL, or plain http on loopback, is normalised to one spelling."""
    assert safe_base_url(value, "url") == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "vault.example",
        "http://vault.example",
        "http://10.0.0.1",
        "http://127.0.0.1.attacker.example",
        "http://localhost.attacker.example",
        "http://127.1",
        "http://0.0.0.0",
        "ftp://vault.example",
        "file:///etc/passwd",
        "javascript:alert(1)",
    ],
)
def test_plain_http_beyond_loopback_and_other_schemes_are_refused(value: str) -> None:
    """A credential never leaves the machine unencrypted."""
    with pytest.raises(ValueError, match=r"^url must be"):
        safe_base_url(value, "url")


@pytest.mark.parametrize(
    "value",
    [
        "https://user@vault.example",
        "https://user:pass@vault.example",
        "https://@vault.example",
        "https://vault.example?a=b",
        "https://vault.example?",
        "https://vault.example#a",
        "https://vault.example/v1#",
    ],
)
def test_a_user_a_query_or_a_fragment_is_refused(value: str) -> None:
    """Even an empty one is refused, because the paths that are appended later would become a part of it."""
    with pytest.raises(ValueError, match="must not contain a user, a query or a fragment"):
        safe_base_url(value, "url")


@pytest.mark.parametrize(
    "value",
    [
        "https://",
        "https://:443",
        "https://vault.example:99999",
        "https://vault.example:port",
        "https://[::1",
        "https://vault example",
        "https://vault.example\n.attacker.example",
        "https://vault.example\\attacker",
        "https://vault\u2024example",
        "https://vault.example\x00",
    ],
)
def test_what_is_not_a_clean_url_is_refused(value: str) -> None:
    """A URL that two parsers could read as two hosts is refused by the field's name."""
    with pytest.raises(ValueError, match=r"^url (is not a|must be a) URL"):
        safe_base_url(value, "url")


@given(st.one_of(st.text(), st.text().map("https://{}".format), st.text(":/@?#\\. a1").map("http://{}".format)))
def test_whatever_is_accepted_is_safe(value: str) -> None:
    """Every accepted text is https or loopback, and every refusal is a `ValueError`."""
    with suppress(ValueError):
        url = urlsplit(safe_base_url(value, "url"))

        assert url.scheme == "https" or is_loopback(url.hostname or "")
        assert (url.username, url.password, url.query, url.fragment) == (None, None, "", "")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("", False),
        ("0.0.0.0", False),  # noqa: S104 - nothing is bound; it must not pass for loopback
        ("192.168.0.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback_is_this_machine_only(host: str, expected: bool) -> None:
    """Names and addresses of this machine count as loopback, look-alikes do not."""
    assert is_loopback(host) is expected
