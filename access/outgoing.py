"""HTTP clients for everything but the hot path: every connection goes to an address that the egress policy permits.

Rule 25: the resolved address is judged when the connection is made, redirects are not followed, and the environment's
proxies are not asked. The address that was judged is the one that is connected to, so that a name which resolves to
something else a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import httpx

Permits = Callable[[str], bool]  # an address → whether the gateway may connect to it
_PORTS = {"http": 80, "https": 443}


def check_url(url: str) -> None:
    """Whether an admin may have the gateway call this URL, wherever its name leads. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write an http or https URL")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("the URL holds neither a user nor a password nor a fragment")
    _ = parts.port  # ValueError for what is no port


class EgressDenied(httpx.ConnectError):
    """The name resolves to no address that may be connected to."""


class EgressTransport(httpx.BaseTransport):
    """For threads."""

    def __init__(self, permits: Permits, verify: ssl.SSLContext | bool = True) -> None:
        self._permits = permits
        self._inner = httpx.HTTPTransport(verify=verify, trust_env=False, retries=0)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host, port = _place(request)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(f"{host} cannot be resolved: {error.strerror}", request=request) from error
        return self._inner.handle_request(_pinned(request, _permitted(found, self._permits, request)))

    def close(self) -> None:
        self._inner.close()


class AsyncEgressTransport(httpx.AsyncBaseTransport):
    """For event loops."""

    def __init__(self, permits: Permits, verify: ssl.SSLContext | bool = True) -> None:
        self._permits = permits
        self._inner = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, retries=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, port = _place(request)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError(f"{host} cannot be resolved: {error.strerror}", request=request) from error
        return await self._inner.handle_async_request(_pinned(request, _permitted(found, self._permits, request)))

    async def aclose(self) -> None:
        await self._inner.aclose()


def client(permits: Permits, timeout_s: float) -> httpx.Client:
    return httpx.Client(transport=EgressTransport(permits), timeout=timeout_s, **_CAREFUL)


def async_client(permits: Permits, timeout_s: float) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AsyncEgressTransport(permits), timeout=timeout_s, **_CAREFUL)


_CAREFUL: dict[str, Any] = {
    "trust_env": False,
    "follow_redirects": False,
    "headers": {"user-agent": "portcullis"},
}


def _place(request: httpx.Request) -> tuple[str, int]:
    port = request.url.port or _PORTS.get(request.url.scheme)
    if port is None:
        raise httpx.UnsupportedProtocol("The URL begins neither with http:// nor with https://.", request=request)
    return request.url.host, port


def _permitted(found: Iterable[Any], permits: Permits, request: httpx.Request) -> str:
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if permits(address):
            return address
    shown = ", ".join(dict.fromkeys(addresses)) or "nothing"
    raise EgressDenied(f"{request.url.host} resolves to {shown}, which EGRESS_ALLOW does not permit", request=request)


def _pinned(request: httpx.Request, address: str) -> httpx.Request:
    """The same request to that address: Host, SNI and the name that the certificate must have stay the URL's."""
    headers = request.headers.copy()
    headers["host"] = request.url.netloc.decode("ascii")
    extensions = {**request.extensions, "sni_hostname": request.url.host}
    return httpx.Request(
        request.method, request.url.copy_with(host=address), headers=headers, stream=request.stream,
        extensions=extensions,
    )  # fmt: skip
