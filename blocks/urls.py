"""Which addresses a credential may be sent to."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import httpx


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine itself.

    Args:
        host: A host name, an IPv4 or an IPv6 address without brackets.

    Returns:
        Whether it is `localhost` or a loopback address.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def safe_base_url(value: str, field: str) -> str:
    """Check the base URL of a service that a credential will be sent to.

    Args:
        value: The URL as a person filled it in.
        field: The name of the field, for the message.

    Returns:
        The URL without a trailing slash.

    Raises:
        ValueError: It is not https (http is for loopback only), has no host, or carries a user, a query or a fragment.
    """
    try:
        url = urlsplit(value.strip())
        host = url.hostname or ""
        _ = url.port, httpx.URL(value.strip())
    except (ValueError, httpx.InvalidURL):
        raise ValueError(f"{field} is not a URL.") from None
    if not host or not value.strip().isprintable() or set(" \\") & set(value.strip()):
        raise ValueError(f"{field} must be a URL with a host, such as https://example.com.")
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(host)):
        raise ValueError(f"{field} must begin with https:// (plain http is accepted on loopback only).")
    # The characters count, not the parts: an empty query or fragment would swallow every path added later.
    if set("@?#") & set(value):
        raise ValueError(f"{field} must not contain a user, a query or a fragment.")
    return value.strip().rstrip("/")
