"""Validation of the URLs that credentials are sent to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import httpx


def is_loopback(host: str) -> bool:
    """Return whether a host is `localhost` or a loopback address (IPv4, or IPv6 without brackets)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def may_use_proxy(url: str) -> bool:
    """Return whether requests to a URL may go through the environment's proxy: not to loopback.

    There a proxy would reach another machine, and see each secret that is sent over plain http.
    """
    return not is_loopback(urlsplit(url).hostname or "")


def safe_base_url(value: str, field: str) -> str:
    """Validate the base URL of a service that a credential is sent to, and return it in its one spelling.

    The host is in lower case; the scheme's own port and a trailing slash are left out. So equal places compare equal.

    Args:
        value: The URL as entered.
        field: The name of the field, for error messages.

    Raises:
        ValueError: It is not https (http is for loopback only), has no host, or has a user, a query or a fragment.
    """
    try:
        url = urlsplit(value.strip())
        host = url.hostname or ""
        # httpx keeps the port of a scheme in capitals.
        _, normalized = url.port, httpx.URL(value.strip()).copy_with(scheme=url.scheme)
    except (ValueError, httpx.InvalidURL):
        raise ValueError(f"{field} is not a URL.") from None
    if not host or not value.strip().isprintable() or set(" \\") & set(value.strip()):
        raise ValueError(f"{field} must be a URL with a host, such as https://example.com.")
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(host)):
        raise ValueError(f"{field} must begin with https:// (plain http is accepted on loopback only).")
    # Check the characters, not the parsed parts: even an empty query or fragment would swallow every appended path.
    if set("@?#") & set(value):
        raise ValueError(f"{field} must not contain a user, a query or a fragment.")
    return str(normalized).rstrip("/")
