"""The cache behind HTTP/2: streams of one connection wait, share and leave like connections of HTTP/1.1."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from h2.errors import ErrorCodes

from tests.cached_services import cached, reply
from tests.dataplane import DataPlane
from tests.http2_client import Http2Client
from tests.scripted_upstream import Seen
from tests.test_dataplane_http2 import connect, tls_settings
from tests.tls_clients import issue, put_pair

PUBLIC = "Cache-Control: public, max-age=60"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def plane(
    start_module_plane: Callable[..., DataPlane], ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> DataPlane:
    directory: Path = tmp_path_factory.mktemp("tls")
    put_pair(issue(ca, "localhost"), directory / "gateway.crt", directory / "gateway.key")
    return start_module_plane(**tls_settings(directory))


@pytest.fixture
def client(plane: DataPlane, ca: trustme.CA) -> Iterator[Http2Client]:
    with connect(plane, ca) as client:
        yield client


def test_a_large_answer_comes_from_memory(plane: DataPlane, client: Http2Client) -> None:
    body = bytes(range(256)) * 3000
    upstream = cached(plane, reply(PUBLIC, body=body))
    for _ in range(3):
        assert bytes(client.ask("GET", upstream.path + "/a").body) == body
    head = client.ask("HEAD", upstream.path + "/a")
    assert (head.status, bytes(head.body)) == (200, b"")
    part = client.ask("GET", upstream.path + "/a", ("range", "bytes=0-299999"))
    assert (part.status, bytes(part.body)) == (206, body[:300_000])
    assert len(upstream.requests) == 1


def test_streams_share_one_request_and_the_first_may_be_reset(plane: DataPlane, client: Http2Client) -> None:
    opened = threading.Event()

    def script(seen: Seen) -> bytes:
        assert opened.wait(20)
        return reply(PUBLIC)

    upstream = cached(plane, script)
    first = client.request("GET", upstream.path + "/a")
    upstream.wait_for(1)
    others = [client.request("GET", upstream.path + "/a") for _ in range(10)]
    client.ask("GET", "/health")
    client.connection.reset_stream(first, ErrorCodes.CANCEL)
    client.flush()
    upstream.wait_for(2)  # another one asks in its place
    opened.set()
    assert {bytes(client.answer(stream).body) for stream in others} == {b"stored"}
    assert len(upstream.requests) == 2
