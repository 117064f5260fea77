"""How targets are asked for their health: over connections of its own, to addresses that the egress policy permits.

The agent asks on its timetable, control when an admin wants to know now; the data plane never does.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx

from core.faults import GatewayFault
from routing.health import Finding, Probe, is_address
from routing.policies import UpstreamTls
from routing.records import TargetRecord
from routing.upstream.errors import ClientCertificateUnusable, EgressDenied

_RESOLVERS = 8  # threads, so that names that hang cost the rest of the process nothing
_AGENT = "portcullis-health-check"


class Asker:
    """Asks targets. ``permits`` judges every resolved address, ``context`` gives the TLS context of a policy."""

    def __init__(self, permits: Callable[[str], bool], context: Callable[[UpstreamTls | None], ssl.SSLContext]) -> None:
        self._permits = permits
        self._context = context
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, "resolve")
        # Not a client: that would keep cookies, read the environment and follow redirects.
        self._plain = _transport(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    async def aclose(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        await self._plain.aclose()

    async def ask(self, probe: Probe) -> Finding:
        """Never raises for what a target does. Takes at most the check's timeout."""
        started = time.perf_counter()
        status: int | None = None
        error = ""
        try:
            async with asyncio.timeout(probe.check.timeout_s):
                status = await self._status(probe)
        except TimeoutError:
            error = f"There was no answer within {probe.check.timeout_s:g} s."
        except GatewayFault as fault:  # a secret that cannot be resolved
            error = fault.detail
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as failure:
            error = _sentence(failure)
        ms = (time.perf_counter() - started) * 1000
        if status is None:
            return Finding(False, ms, None, error)
        is_good = probe.check.status_from <= status <= probe.check.status_to
        return Finding(is_good, ms, status, "" if is_good else f"It answered with status {status}.")

    async def _status(self, probe: Probe) -> int:
        addresses = await self._addresses(probe.target)
        for address in addresses[:-1]:
            try:
                return await self._status_at(probe, address)
            except httpx.ConnectError:
                pass  # the next one may be better
        return await self._status_at(probe, addresses[-1])

    async def _addresses(self, target: TargetRecord) -> list[str]:
        """As the data plane finds them: judged after resolving and connected to as they were judged, so that no second
        answer of the name server can slip another one in. Raises OSError; never an empty list."""
        _, host, port = target.origin
        found = [host] if is_address(host) else await self._resolve(host, port)
        allowed = [address for address in found if self._permits(address)]
        if not allowed:
            raise EgressDenied(f"{host} resolves to {', '.join(found)}")
        return allowed

    async def _resolve(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(
            self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(info[4][0]) for info in infos))

    async def _status_at(self, probe: Probe, address: str) -> int:
        scheme, host, port = probe.target.origin
        literal = f"[{address}]" if ":" in address else address
        tls = probe.target.tls
        request = httpx.Request(
            probe.check.method,
            f"{scheme}://{literal}:{port}{probe.check.path}",
            headers={
                "Host": probe.target.host_header.decode("ascii"),
                "User-Agent": _AGENT,
                "Accept": "*/*",
                "Connection": "close",
            },
            extensions={"sni_hostname": (tls.server_name if tls is not None else "") or host},
        )
        async with self._transport_for(probe.target) as transport:
            response = await transport.handle_async_request(request)
            await response.aclose()  # the body is left unread: the verdict is in the status
        return response.status_code

    @asynccontextmanager
    async def _transport_for(self, target: TargetRecord) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        if target.origin[0] == "http":
            yield self._plain
        else:
            async with _transport(self._context(target.tls)) as transport:
                yield transport


def _transport(context: ssl.SSLContext) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)


def _sentence(failure: BaseException) -> str:
    causes = list(_causes(failure))
    for cause in causes:
        if isinstance(cause, EgressDenied):
            return "Its address is not one that the gateway may connect to (EGRESS_ALLOW)."
        if isinstance(cause, ClientCertificateUnusable):
            return f"The client certificate cannot be shown: {cause}."
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"Its certificate is not valid: {cause.verify_message}."
        if isinstance(cause, ssl.SSLError):
            return "The TLS handshake failed."
        if isinstance(cause, socket.gaierror):
            return "Its name could not be resolved."
        if isinstance(cause, ConnectionRefusedError):
            return "It refused the connection."
    if isinstance(failure, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError | httpx.CloseError):
        return "It closed the connection or sent no valid HTTP answer."
    if isinstance(failure, OSError) and not isinstance(failure, httpx.HTTPError) and failure.strerror:
        return f"{failure.strerror}."
    return "No connection could be made."


def _causes(failure: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while failure is not None and failure not in found:
        found.append(failure)
        failure = failure.__cause__ or failure.__context__
    return found
