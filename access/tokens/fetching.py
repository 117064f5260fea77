"""Asks issuers over the network: for their keys (RFC 7517), and for their opinion of a token (RFC 7662).

Only the agent does. Addresses are judged by the egress policy after resolving (rule 25), redirects are not followed,
and answers are bounded in size and time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx
import orjson

from access.policies import Introspection
from access.tokens.records import public_keys

MAX_BYTES = 512 * 1024
TIMEOUT_S = 5.0
_RESOLVERS = 4
_AGENT = "portcullis"
_FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


class IssuerAway(Exception):
    """The issuer did not answer as it should. The message is a sentence that holds no secret."""


class IssuerClient:
    """``permits`` judges every resolved address."""

    def __init__(self, permits: Callable[[str], bool]) -> None:
        self._permits = permits
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, "resolve issuers")
        # Not a client: that would keep cookies, read the environment and follow redirects.
        self._transport = httpx.AsyncHTTPTransport(verify=ssl.create_default_context(), trust_env=False)

    async def aclose(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        await self._transport.aclose()

    async def keys(self, url: str) -> tuple[list[dict[str, Any]], str]:
        """The public keys at ``url``, and the answer's Cache-Control. Raises `IssuerAway`."""
        document, cache_control = await self._asked("GET", url, {}, b"", TIMEOUT_S)
        try:
            return public_keys(document), cache_control
        except ValueError as error:
            raise IssuerAway(f"what is there is no JWK Set: {error}") from None

    async def opinion(self, policy: Introspection, secret: bytes, token: str) -> dict[str, Any] | None:
        """What the issuer says of an active token; None: it is not. Raises `IssuerAway`."""
        # RFC 6749 section 2.3.1: both are form-urlencoded before they become a user and a password.
        user = f"{quote_plus(policy.client_id)}:{quote_plus(secret.decode('utf-8', 'replace'))}"
        headers = {
            "Authorization": "Basic " + b64encode(user.encode()).decode(),
            "Content-Type": "application/x-www-form-urlencoded",
        }
        body = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        document, _ = await self._asked("POST", policy.url, headers, body, policy.timeout_ms / 1000)
        if not isinstance(document, dict) or not isinstance(document.get("active"), bool):
            raise IssuerAway("it did not say whether the token is active")
        return document if document["active"] else None

    async def _asked(
        self, method: str, url: str, headers: dict[str, str], body: bytes, timeout_s: float
    ) -> tuple[Any, str]:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._answer(method, url, headers, body)
        except TimeoutError:
            raise IssuerAway(f"there was no answer within {timeout_s:g} s") from None
        except _FAILURES as error:
            raise IssuerAway(_sentence(error)) from None

    async def _answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> tuple[Any, str]:
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise ValueError("the URL is not one to ask")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self._address(host, port)
        literal = f"[{address}]" if ":" in address else address
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = httpx.Request(
            method,
            f"{parts.scheme}://{literal}:{port}{target}",
            headers={
                "Host": parts.netloc,
                "User-Agent": _AGENT,
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                **headers,
            },
            content=body,
            extensions={"sni_hostname": host},
        )
        response = await self._transport.handle_async_request(request)
        try:
            if response.status_code != 200:
                raise ValueError(f"it answered with status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ValueError("its answer is compressed, which nobody asked for")
            content = b""
            async for part in response.aiter_raw():
                content += part
                if len(content) > MAX_BYTES:
                    raise ValueError(f"its answer is over the limit of {MAX_BYTES} bytes")
        finally:
            await response.aclose()
        try:
            return orjson.loads(content), response.headers.get("cache-control", "")
        except ValueError:
            raise ValueError("its answer is no JSON") from None

    async def _address(self, host: str, port: int) -> str:
        """The first that the policy permits: judged as it is connected to, so that no second answer of the name server
        can slip another one in."""
        try:
            found = [str(ip_address(host))]
        except ValueError:
            infos = await asyncio.get_running_loop().run_in_executor(
                self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
            found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        for address in found:
            if self._permits(address):
                return address
        raise ValueError("its address is not one that the gateway may connect to (EGRESS_ALLOW)")


def _sentence(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        if isinstance(cause, socket.gaierror):
            return "its name could not be resolved"
        if isinstance(cause, ConnectionRefusedError):
            return "it refused the connection"
        cause = cause.__cause__ or cause.__context__
    return "no connection could be made, or it broke"
