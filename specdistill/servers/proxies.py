"""Which proxy of the environment a request goes through: none for a server on this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine: localhost, 127.0.0.0/8, ::1, or an address that means every local one."""
    host = _host(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def proxy_of(url: str) -> str | None:
    """Finds the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY name for a URL, without its user and password.

    Returns:
        The proxy's URL; None for a server on this machine, and where NO_PROXY lists the host.
    """
    # It imports the whole of http, and --help needs none of it.
    import urllib.request

    if is_loopback(url) or urllib.request.proxy_bypass(_host(url)):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(urlsplit(url).scheme) or proxies.get("all")
    if not proxy:
        return None
    scheme, separator, rest = proxy.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def remedy_for(url: str) -> str:
    """Names the proxy of a URL for an error message, with the way around it; empty without a proxy."""
    proxy = proxy_of(url)
    return "" if proxy is None else f" through the proxy {proxy} (NO_PROXY={_host(url)} goes around it)"


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
