"""URLs of servers: checked, and compared."""

from __future__ import annotations

from urllib.parse import urlsplit

from specdistill.errors import ConfigError
from specdistill.servers.proxies import is_loopback


def check_url(url: str) -> None:
    """Checks the form of a server's URL; contacts no server.

    Raises:
        ConfigError: `url` does not start with http:// or https://.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"a server's URL starts with http:// or https://, got {url!r}")


def same_server(one: str, other: str) -> bool:
    """Whether two URLs name one server: /v1, a slash, the scheme's own port and loopback's names make no difference."""
    return _place(one) == _place(other)


def _place(url: str) -> tuple[str, int, str]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise ConfigError(f"the URL {url!r} has no valid port") from None
    host = (parts.hostname or "").rstrip(".")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    default = 443 if parts.scheme == "https" else 80
    return "localhost" if is_loopback(url) else host, port or default, path
