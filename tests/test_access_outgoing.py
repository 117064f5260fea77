"""Outgoing HTTP: only to permitted addresses, pinned, without redirects or the environment's proxies."""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
import trustme

from access.addresses import EgressPolicy
from access.outgoing import AsyncEgressTransport, EgressDenied, EgressTransport, async_client, client

LOOPBACK = EgressPolicy(("127.0.0.0/8", "::1/128")).permits


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("location", "http://169.254.169.254/")
        body = f"{self.headers['host']} {self.headers['user-agent']}".encode()
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with _serving(None) as port:
        yield port


@contextmanager
def _serving(context: ssl.SSLContext | None) -> Iterator[int]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = Thread(target=httpd.serve_forever)
    thread.start()
    yield httpd.server_port
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_permitted_address_is_asked_under_the_urls_own_name(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with client(LOOPBACK, 5) as http:
        assert http.get(f"http://localhost:{server}/x").text == f"localhost:{server} portcullis"


def test_what_is_not_permitted_is_not_connected_to(server: int) -> None:
    nowhere = EgressPolicy(()).permits
    with client(nowhere, 5) as http, pytest.raises(EgressDenied, match="EGRESS_ALLOW"):
        http.get(f"http://localhost:{server}/x")

    async def ask() -> None:
        async with async_client(nowhere, 5) as http:
            await http.get(f"http://127.0.0.1:{server}/x")

    with pytest.raises(EgressDenied, match=r"127\.0\.0\.1"):
        asyncio.run(ask())


@pytest.mark.parametrize("address", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "0.0.0.0"])
def test_metadata_addresses_are_never_permitted(address: str) -> None:
    anywhere = EgressPolicy(("0.0.0.0/0", "::/0")).permits
    with client(anywhere, 5) as http, pytest.raises(EgressDenied):
        http.get(f"http://{address}/latest/meta-data")


def test_redirects_are_not_followed(server: int) -> None:
    with client(LOOPBACK, 5) as http:
        assert http.get(f"http://localhost:{server}/away").status_code == 302


@pytest.mark.parametrize("url", ["ftp://localhost/x", "file:///etc/passwd"])
def test_only_http_is_spoken(url: str) -> None:
    with client(LOOPBACK, 5) as http, pytest.raises(httpx.UnsupportedProtocol):
        http.get(url)


def test_a_certificate_must_be_the_names_and_not_the_addresss() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with _serving(context) as port:
        with httpx.Client(transport=EgressTransport(LOOPBACK, trusting)) as http:
            assert http.get(f"https://localhost:{port}/x").status_code == 200
            with pytest.raises(httpx.ConnectError, match="certificate"):
                http.get(f"https://127.0.0.1:{port}/x")

        async def ask() -> int:
            async with httpx.AsyncClient(transport=AsyncEgressTransport(LOOPBACK, trusting)) as http:
                return (await http.get(f"https://localhost:{port}/x")).status_code

        assert asyncio.run(ask()) == 200
