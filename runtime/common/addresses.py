"""Addresses of servers, checked before a library reports them in words of its own."""

from urllib.parse import urlsplit


def is_sound(address: str, needs_host: bool = True) -> bool:
    """Whether an address has a host, if it needs one, and no port or one from 1 to 65535."""
    try:
        parts = urlsplit(address)
        return parts.port != 0 and (bool(parts.hostname) or not needs_host)
    except ValueError:
        return False
