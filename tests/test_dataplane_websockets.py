"""WebSockets through a running worker (RFC 6455, rule 12)."""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Subprotocol

from core.policies import PolicyError, read
from routing.policies import WebSockets
from tests.dataplane import DataPlane, failed
from tests.gateway_process import eventually
from tests.raw_http import CutShort
from tests.scripted_upstream import OK, Peer, Upstream, replying
from tests.tls_clients import is_listening
from tests.websocket_peers import (
    ASKS,
    BINARY,
    CLOSE,
    CONTINUATION,
    NONCE,
    PING,
    PONG,
    TEXT,
    VERSION,
    Ended,
    Frame,
    UpstreamEnd,
    accept_of,
    agreeing,
    ask,
    close,
    frame,
    open_socket,
    read_frame,
)
from tests.websocket_peers import echo as echo_frames
from tests.wires import application_wire, entry_wire, queue_route_wire, route_wire, version_wire

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def echo(plane: DataPlane) -> Upstream:
    return plane.serve(agreeing())


def policy(**members: Any) -> dict[str, Any]:
    return {"websockets": members}


class Ends:
    """A script that keeps what its end of the tunnel hears, until a Close; ``goes_on``: and for a moment longer."""

    def __init__(self, then: Callable[[UpstreamEnd], None] | None = None, *, goes_on: bool = False) -> None:
        self._goes_on = goes_on
        self.heard: list[Frame] = []
        self.is_over = threading.Event()
        self._then = then

    def __call__(self, end: UpstreamEnd) -> None:
        if self._then is not None:
            self._then(end)
        try:
            while self._goes_on or not self.heard or self.heard[-1].opcode != CLOSE:
                self.heard.append(end.read())
                end.peer.socket.settimeout(0.7 if self._goes_on else TIMEOUT_S)
        except (Ended, TimeoutError):
            pass
        finally:
            self.is_over.set()

    def await_the_end(self) -> list[Frame]:
        assert self.is_over.wait(TIMEOUT_S), "the upstream's connection has not ended"
        return self.heard


# --- the handshake ---------------------------------------------------------------------------------------------------
def test_a_handshake_goes_the_way_of_every_request_and_frames_follow(plane: DataPlane, echo: Upstream) -> None:
    with open_socket(plane, f"{echo.path}/chat?room=1", "X-Extra: yes", "Cookie: a=1; portcullis_session=x") as socket:
        answer = socket.answer
        assert answer.field("sec-websocket-accept") == accept_of(NONCE.encode()).decode()
        assert (answer.field("upgrade"), answer.field("connection")) == ("websocket", "upgrade")
        assert answer.field("via") == "1.1 portcullis"
        assert answer.field("ratelimit-policy")
        assert answer.field("sec-websocket-protocol") is None
        socket.send(frame(TEXT, b"hello"))
        assert socket.read() == Frame(TEXT, b"hello")
    seen = echo.requests[-1]
    assert seen.target == b"/chat?room=1"
    assert (seen.field("connection"), seen.field("upgrade")) == (b"upgrade", b"websocket")
    assert seen.field("sec-websocket-key") == NONCE.encode()
    assert seen.field("sec-websocket-version") == b"13"
    assert (seen.field("x-extra"), seen.field("cookie")) == (b"yes", b"a=1")
    assert seen.field("x-gateway-application") == b"app_1"
    assert seen.names.isdisjoint({"x-api-key", "content-length", "transfer-encoding", "sec-websocket-protocol"})


def test_what_the_upstream_says_beside_the_handshake_passes(plane: DataPlane) -> None:
    fields = (b"Set-Cookie: a=1", b"Set-Cookie: b=2", b"Keep-Alive: 5", b"Content-Length: 0", b"X-Hub: 7")
    upstream = plane.serve(agreeing(None, *fields))
    with open_socket(plane, upstream.path) as socket:
        assert socket.answer.all("set-cookie") == ["a=1", "b=2"]
        assert socket.answer.field("x-hub") == "7"
        assert {name for name, _ in socket.answer.fields}.isdisjoint({"keep-alive", "content-length"})


REFUSED = {
    "no version": (ASKS[:2] + ASKS[3:], 426, "upgrade_required"),
    "version 8": ((*ASKS[:2], "Sec-WebSocket-Version: 8", ASKS[3]), 426, "upgrade_required"),
    "two versions": ((*ASKS, VERSION), 426, "upgrade_required"),
    "no key": (ASKS[:3], 400, "bad_request"),
    "a short key": ((*ASKS[:3], "Sec-WebSocket-Key: dGhl"), 400, "bad_request"),
    "no base64": ((*ASKS[:3], "Sec-WebSocket-Key: ????????????????????????"), 400, "bad_request"),
    "two keys": ((*ASKS, ASKS[3]), 400, "bad_request"),
    "two credentials": (
        (*ASKS, "Sec-WebSocket-Protocol: portcullis.key.a, portcullis.key.b"),
        400,
        "bad_request",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_handshake_is_refused_and_the_connection_goes_on(
    plane: DataPlane, echo: Upstream, case: str
) -> None:
    fields, status, code = REFUSED[case]
    count = len(echo.requests)
    with plane.connect() as client:
        answer = client.send(plane.request("GET", echo.path, *fields)).answer()
        assert (answer.status, answer.code) == (status, code)
        if status == 426:
            assert answer.field("sec-websocket-version") == "13"
            assert (answer.field("upgrade"), answer.field("connection")) == ("websocket", "upgrade")
        assert client.send(plane.request("GET", "/health")).answer().status == 200
    assert len(echo.requests) == count


IGNORED = {
    "POST": ("POST", ASKS),
    "with a body": ("GET", (*ASKS, "Content-Length: 3")),
    "in chunks": ("GET", (*ASKS, "Transfer-Encoding: chunked")),
    "not named by Connection": ("GET", ASKS[1:]),
    "another protocol": ("GET", ("Upgrade: h2c", ASKS[0], *ASKS[2:])),
    "no handshake at all": ("GET", ASKS[:2]),
}


@pytest.mark.parametrize("case", IGNORED)
def test_what_is_no_handshake_is_served_as_if_it_asked_for_none(plane: DataPlane, case: str) -> None:
    method, fields = IGNORED[case]
    upstream = plane.serve()
    body = b"abc" if "Content-Length: 3" in fields else b"0\r\n\r\n" if case == "in chunks" else b""
    with plane.connect() as client:
        client.send(plane.request(method, upstream.path, *fields) + body)
        assert client.answer(method).body == b"ok"
        assert client.send(plane.request("GET", upstream.path)).answer().body == b"ok"
    assert not upstream.requests[0].names & {"upgrade", "connection"}


def test_http_1_0_opens_no_websocket(plane: DataPlane) -> None:
    upstream = plane.serve()
    with plane.connect() as client:
        client.send(ask(plane, upstream.path).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.answer().body == b"ok"


def test_without_a_key_and_with_a_wrong_one_it_is_401(plane: DataPlane, echo: Upstream) -> None:
    for key, code in ((None, "missing_credentials"), ("wrong", "invalid_credentials")):
        with plane.connect() as client:
            answer = client.send(ask(plane, echo.path, key=key)).answer()
            assert (answer.status, answer.code) == (401, code)


def test_it_is_charged_like_a_request(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane()
    upstream = plane.serve(agreeing())
    plane.feed.put("application", application_wire(rate_limit=1))
    open_socket(plane, upstream.path).client.socket.close()
    with plane.connect() as client:
        assert client.send(ask(plane, upstream.path)).answer().status == 429


@pytest.mark.parametrize(
    ("offered", "passed", "chosen", "answered"),
    [
        ("portcullis.key.{key}, chat", b"chat", b"chat", "chat"),
        ("chat, portcullis.key.{key}, v2", b"chat, v2", b"v2", "v2"),
        ("portcullis, portcullis.key.{key}", None, None, "portcullis"),
        ("portcullis, portcullis.key.{key}, chat", b"chat", b"chat", "chat"),
        ("chat\r\nSec-WebSocket-Protocol: portcullis.key.{key}", b"chat", None, None),
    ],
)
def test_a_browser_may_send_its_key_as_a_subprotocol(
    plane: DataPlane, offered: str, passed: bytes | None, chosen: bytes | None, answered: str | None
) -> None:
    fields = (b"Sec-WebSocket-Protocol: " + chosen,) if chosen is not None else ()
    upstream = plane.serve(agreeing(None, *fields))
    field = "Sec-WebSocket-Protocol: " + offered.format(key=plane.key)
    with open_socket(plane, upstream.path, field, key=None) as socket:
        assert socket.answer.field("sec-websocket-protocol") == answered
    seen = upstream.requests[-1]
    assert seen.field("sec-websocket-protocol") == passed
    assert plane.key.encode() not in b"".join(value for _, value in seen.fields)


def test_a_key_in_the_query_counts_only_where_the_policy_says_so(plane: DataPlane) -> None:
    upstream = plane.serve(agreeing())
    with plane.connect() as client:
        answer = client.send(ask(plane, f"{upstream.path}?key={plane.key}", key=None)).answer()
        assert (answer.status, answer.code) == (401, "missing_credentials")
    upstream = plane.serve(agreeing(), policies=policy(queryKey="key"))
    target = f"{upstream.path}/x?a=1&k%65y={plane.key}&b=2&key=other"
    with open_socket(plane, target, key=None) as socket:
        request_id = socket.answer.field("x-request-id")
    assert upstream.requests[-1].target == b"/x?a=1&b=2"
    assert plane.key not in str(plane.log_line(request_id))
    with open_socket(plane, f"{upstream.path}/x?key={plane.key}", key=None):
        pass
    assert upstream.requests[-1].target == b"/x"


def test_origins_are_checked_and_who_sends_none_is_no_browser(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(cors_origins=("https://app.test",))
    by_setting = plane.serve(agreeing())
    by_policy = plane.serve(agreeing(), policies=policy(origins=["https://other.test:8443"]))
    anybody = plane.serve(agreeing(), policies=policy(origins=["*"]))
    nobody = plane.serve(agreeing(), policies=policy(origins=[]))
    allowed = [
        (by_setting, "https://app.test"),
        (by_policy, "https://other.test:8443"),
        (anybody, "https://evil.test"),
        (anybody, "null"),
    ]
    for upstream, origin in allowed:
        open_socket(plane, upstream.path, f"Origin: {origin}").client.socket.close()
    refused = [(by_setting, "https://evil.test"), (by_policy, "https://app.test"), (nobody, "https://app.test")]
    refused += [(by_setting, "null"), (by_setting, "https://app.test.evil.test"), (by_setting, "")]
    for upstream, origin in refused:
        with plane.connect() as client:
            answer = client.send(ask(plane, upstream.path, f"Origin: {origin}")).answer()
            assert (answer.status, answer.code) == (403, "blocked"), origin
    open_socket(plane, nobody.path).client.socket.close()


def test_websockets_can_be_switched_off(plane: DataPlane) -> None:
    upstream = plane.serve(agreeing(), policies=policy(enabled=False))
    with plane.connect() as client:
        answer = client.send(ask(plane, upstream.path)).answer()
        assert (answer.status, answer.code) == (403, "blocked")
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_ws", "/ws/on", service=name, policies=policy(enabled=True)))
    open_socket(plane, "/ws/on").client.socket.close()  # a route has the last word


def test_a_websocket_to_a_queue_or_to_the_gateway_itself_is_none(plane: DataPlane) -> None:
    plane.feed.answerer = lambda name, params: {"task_id": "t", "status": "queued"}
    plane.feed.put("queue_route", queue_route_wire(id="que_ws"))
    plane.feed.put("route", route_wire("rte_ws_queue", "/ws/queue", service=None, queue_route="que_ws"))
    with plane.connect() as client:
        assert client.send(ask(plane, "/health")).answer().status == 200
        assert client.send(ask(plane, "/ws/queue")).answer().status in (202, 400)
        assert client.send(plane.request("GET", "/health")).answer().status == 200


# --- the upstream's answer -------------------------------------------------------------------------------------------
def test_an_upstreams_refusal_is_the_answer_and_both_connections_go_on(plane: DataPlane) -> None:
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nX-Why: no\r\nContent-Length: 4\r\n\r\nnope"
    upstream = plane.serve(replying(refusal, OK))
    with plane.connect() as client:
        answer = client.send(ask(plane, upstream.path)).answer()
        assert (answer.status, answer.body, answer.field("x-why")) == (403, b"nope", "no")
        assert client.send(plane.request("GET", upstream.path)).answer().body == b"ok"
    assert upstream.connections == 1


def test_what_was_sent_behind_a_refused_handshake_is_http_after_all(plane: DataPlane) -> None:
    upstream = plane.serve(replying(OK))
    following = plane.request("POST", upstream.path, body=b"abc") + plane.request("GET", f"{upstream.path}/last")
    with plane.connect() as client:
        client.send(ask(plane, f"{upstream.path}/a") + ask(plane, f"{upstream.path}/b") + following)
        assert [client.answer().status for _ in range(4)] == [200] * 4
    assert [seen.body for seen in upstream.requests] == [b"", b"", b"abc", b""]
    assert upstream.requests[-1].target == b"/last"


def test_a_handshake_waits_for_its_turn_on_the_connection(plane: DataPlane, echo: Upstream) -> None:
    slow = plane.serve(replying(OK))
    with plane.connect() as client:
        client.send(plane.request("GET", slow.path) * 3 + ask(plane, echo.path) + frame(TEXT, b"early"))
        assert [client.answer().body for _ in range(3)] == [b"ok"] * 3
        assert client.answer().status == 101
        assert read_frame(client.exactly) == Frame(TEXT, b"early")


def test_http_behind_an_accepted_handshake_never_reaches_the_upstream(plane: DataPlane) -> None:
    """Else a client could smuggle requests past the gateway through a WebSocket."""
    ends = Ends()
    upstream = plane.serve(agreeing(ends))
    with plane.connect() as client:
        client.send(ask(plane, upstream.path) + plane.request("GET", "/admin"))
        assert client.answer().status == 101
        assert read_frame(client.exactly).code == 1002
    assert [each.opcode for each in ends.await_the_end()] == [CLOSE]


SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
ACCEPT = b"Sec-WebSocket-Accept: " + accept_of(NONCE.encode()) + b"\r\n"
BAD_SWITCHES = {
    "no accept": UPGRADE,
    "a wrong accept": UPGRADE + b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n",
    "two accepts": UPGRADE + ACCEPT + ACCEPT,
    "no upgrade": b"Connection: Upgrade\r\n" + ACCEPT,
    "no connection": b"Upgrade: websocket\r\n" + ACCEPT,
    "another protocol": b"Upgrade: h2c\r\nConnection: Upgrade\r\n" + ACCEPT,
    "a subprotocol that was not offered": UPGRADE + ACCEPT + b"Sec-WebSocket-Protocol: evil\r\n",
    "the subprotocol of the key": UPGRADE + ACCEPT + b"Sec-WebSocket-Protocol: portcullis\r\n",
    "two subprotocols": UPGRADE + ACCEPT + b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: v2\r\n",
    "a list of subprotocols": UPGRADE + ACCEPT + b"Sec-WebSocket-Protocol: chat, v2\r\n",
    "an extension that was not offered": UPGRADE + ACCEPT + b"Sec-WebSocket-Extensions: permessage-deflate\r\n",
}


@pytest.mark.parametrize("case", BAD_SWITCHES)
def test_a_switch_that_is_not_what_was_asked_for_is_502(plane: DataPlane, case: str) -> None:
    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(SWITCHED + BAD_SWITCHES[case] + b"\r\n" + frame(TEXT, b"evil", masked=False))
            peer.wait_for_end()

    upstream = plane.serve(script)
    with plane.connect() as client:
        answer = client.send(ask(plane, upstream.path, "Sec-WebSocket-Protocol: portcullis, chat, v2")).answer()
        failed(answer, 502, "upstream_invalid_response", "http_protocol_error")
        assert client.send(plane.request("GET", "/health")).answer().status == 200


def test_frames_in_the_same_breath_as_the_101_arrive(plane: DataPlane) -> None:
    upstream = plane.serve(agreeing(after=frame(TEXT, b"first", masked=False)))
    with open_socket(plane, upstream.path) as socket:
        assert socket.read() == Frame(TEXT, b"first")


def test_an_upstream_that_is_away_is_502(plane: DataPlane) -> None:
    upstream = plane.serve(agreeing())
    upstream.stop_listening()
    with plane.connect() as client:
        failed(client.send(ask(plane, upstream.path)).answer(), 502, "upstream_connect_failed", "connection_refused")


# --- frames ----------------------------------------------------------------------------------------------------------
def test_frames_pass_as_they_are(plane: DataPlane, echo: Upstream) -> None:
    frames = [
        Frame(TEXT, b""),
        Frame(TEXT, "grüß".encode()),
        Frame(BINARY, bytes(range(256))),
        Frame(BINARY, b"x" * 125),
        Frame(BINARY, b"x" * 126),
        Frame(BINARY, b"x" * 65535),
        Frame(BINARY, b"x" * 65536),
        Frame(TEXT, b"to be ", is_final=False),
        Frame(PING, b"between"),
        Frame(CONTINUATION, b"continued, ", is_final=False),
        Frame(PONG, b""),
        Frame(CONTINUATION, b"and ended"),
        Frame(PING, b"p" * 125),
        Frame(TEXT, b"again"),
    ]
    with open_socket(plane, echo.path) as socket:
        for each in frames:
            socket.send(frame(each.opcode, each.payload, final=each.is_final))
            assert socket.read() == each
        together = b"".join(frame(each.opcode, each.payload, final=each.is_final) for each in frames)
        socket.send(together)
        assert [socket.read() for _ in frames] == frames
        for octet in together[:600]:
            socket.send(bytes((octet,)))
        socket.send(together[600:])
        assert [socket.read() for _ in frames] == frames


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 3000, 4999])
def test_close_codes_pass_both_ways(plane: DataPlane, code: int) -> None:
    ends = Ends()
    upstream = plane.serve(agreeing(ends))
    with open_socket(plane, upstream.path) as socket:
        socket.send(close(code, "because"))
        eventually(lambda: ends.heard, what="the Close")
        assert (ends.heard[0].code, ends.heard[0].payload[2:]) == (code, b"because")
    from_upstream = plane.serve(agreeing(Ends(lambda end: end.send(close(code, "because", masked=False)))))
    with open_socket(plane, from_upstream.path) as socket:
        assert socket.read() == Frame(CLOSE, code.to_bytes(2) + b"because")
        socket.send(close(code))
        assert socket.client.is_at_end()


def test_a_close_without_a_code_passes(plane: DataPlane, echo: Upstream) -> None:
    with open_socket(plane, echo.path) as socket:
        socket.send(frame(CLOSE))
        assert socket.read() == Frame(CLOSE, b"")
        assert socket.client.is_at_end()


def test_nothing_passes_behind_a_close(plane: DataPlane) -> None:
    ends = Ends(goes_on=True)
    upstream = plane.serve(agreeing(ends))
    with open_socket(plane, upstream.path) as socket:
        socket.send(close(1000) + frame(TEXT, b"more"))
        socket.send(frame(TEXT, b"more"))
        eventually(lambda: ends.heard, what="the Close")
    assert [each.opcode for each in ends.await_the_end()] == [CLOSE]


# What a client may not send, and the code of the Close that it gets.
NO_FRAMES = {
    "an unmasked frame": (frame(TEXT, b"hello", masked=False), 1002),
    "a reserved opcode": (frame(3, b"hello"), 1002),
    "a reserved control opcode": (frame(11, b""), 1002),
    "RSV1 without an extension": (frame(TEXT, b"hello", reserved=4), 1002),
    "RSV2": (frame(TEXT, b"hello", reserved=2), 1002),
    "RSV3": (frame(TEXT, b"hello", reserved=1), 1002),
    "RSV1 on a ping": (frame(PING, b"hello", reserved=4), 1002),
    "a fragmented ping": (frame(PING, b"hello", final=False), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a close of a single byte": (frame(CLOSE, b"x"), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"hello"), 1002),
    "a message within a message": (frame(TEXT, b"a", final=False) + frame(TEXT, b"b"), 1002),
    "a length that could be shorter": (frame(TEXT, b"hello", length=b"\x7e\x00\x05"), 1002),
    "a length that could be shorter by far": (frame(TEXT, b"hello", length=b"\x7f" + (5).to_bytes(8)), 1002),
    "a negative length": (frame(TEXT, b"hello", length=b"\x7f" + b"\xff" * 8), 1002),
    "a message over the limit": (frame(BINARY, b"x" * 1001), 1009),
    "the header of one": (frame(BINARY, b"", length=b"\x7f" + (2**40).to_bytes(8)), 1009),
    "fragments over the limit": (
        frame(TEXT, b"x" * 600, final=False) + frame(CONTINUATION, b"x" * 401, final=False),
        1009,
    ),
}


@pytest.fixture(scope="module")
def limited(plane: DataPlane) -> tuple[Upstream, list[Ends]]:
    """An upstream for messages of 1,000 bytes at most, and its ends, one for each socket."""
    every: list[Ends] = []

    def then(end: UpstreamEnd) -> None:
        every.append(Ends())
        every[-1](end)

    return plane.serve(agreeing(then), policies=policy(maxMessageBytes=1000)), every


@pytest.mark.parametrize("case", NO_FRAMES)
def test_a_client_that_breaks_the_rules_is_told_and_nothing_of_it_passes(
    plane: DataPlane, limited: tuple[Upstream, list[Ends]], case: str
) -> None:
    upstream, every = limited
    data, code = NO_FRAMES[case]
    count = len(every)
    with open_socket(plane, upstream.path) as socket:
        request_id = socket.answer.field("x-request-id")
        socket.send(frame(TEXT, b"x" * 1000))
        socket.send(frame(PING, b"well") + data + frame(TEXT, b"after"))
        assert socket.read().code == code
        assert socket.client.is_at_end()
    heard = eventually(lambda: every[count:], what="the upstream's end")[0].await_the_end()
    assert [each.opcode for each in heard[:2]] == [TEXT, PING]
    assert heard[-1].code == 1001
    assert all(len(each.payload) <= 1000 and each.payload != b"after" for each in heard)
    assert plane.log_line(request_id)["code"] == ("payload_too_large" if code == 1009 else "bad_request")


@pytest.mark.parametrize("case", [each for each in NO_FRAMES if each != "an unmasked frame"])
def test_an_upstream_that_breaks_the_rules_is_cut_off(plane: DataPlane, case: str) -> None:
    data, code = NO_FRAMES[case]
    unmasked = {
        "fragments over the limit": frame(TEXT, b"x" * 600, final=False, masked=False)
        + frame(CONTINUATION, b"x" * 401, final=False, masked=False),
        "a message within a message": frame(TEXT, b"a", final=False, masked=False) + frame(TEXT, b"b", masked=False),
    }.get(case, _unmasked(data))
    ends = Ends(lambda end: end.send(unmasked + frame(TEXT, b"after", masked=False)))
    upstream = plane.serve(agreeing(ends), policies=policy(maxMessageBytes=1000))
    with open_socket(plane, upstream.path) as socket:
        got = socket.read()
        while got.opcode != CLOSE:
            assert got.payload != b"after"
            got = socket.read()
        assert got.code == (1009 if code == 1009 else 1011)
        socket.send(close(got.code))
        assert socket.client.is_at_end()
    assert ends.await_the_end()[-1].code == code


def _unmasked(data: bytes) -> bytes:
    """The first frame of ``data`` without its mask."""
    head = 2 + {126: 2, 127: 8}.get(data[1] & 127, 0)
    got_mask, payload = data[head : head + 4], data[head + 4 :]
    plain = bytes(octet ^ got_mask[i & 3] for i, octet in enumerate(payload))
    return bytes((data[0], data[1] & 127)) + data[2:head] + plain


def test_an_upstream_may_not_mask(plane: DataPlane) -> None:
    ends = Ends(lambda end: end.send(frame(TEXT, b"hello")))
    upstream = plane.serve(agreeing(ends))
    with open_socket(plane, upstream.path) as socket:
        assert socket.read().code == 1011
    assert ends.await_the_end()[-1].code == 1002


# --- ends ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_reset", [False, True], ids=["close", "reset"])
def test_an_upstream_sees_that_a_client_has_gone_without_a_word(plane: DataPlane, is_reset: bool) -> None:
    ends = Ends()
    upstream = plane.serve(agreeing(ends))
    with open_socket(plane, upstream.path) as socket:
        socket.send(frame(TEXT, b"hello"))
        eventually(lambda: ends.heard, what="the message")
        socket.client.reset() if is_reset else socket.client.half_close()
        assert [each.opcode for each in ends.await_the_end()] == [TEXT]


@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
def test_a_client_is_told_when_the_upstream_has_gone_without_a_word(
    plane: DataPlane, end: Callable[[Peer], None]
) -> None:
    upstream = plane.serve(agreeing(lambda at: end(at.peer), after=frame(TEXT, b"last words", masked=False)))
    with open_socket(plane, upstream.path) as socket:
        request_id = socket.answer.field("x-request-id")
        got = socket.read()
        if end is Peer.close:
            assert got == Frame(TEXT, b"last words")
            got = socket.read()
        elif got.opcode == TEXT:
            got = socket.read()
        assert got.code == 1011
        socket.send(close(1011))
        assert socket.client.is_at_end()
    assert plane.log_line(request_id)["code"] == "upstream_reset"


def test_an_upstream_that_goes_within_a_frame_leaves_a_visible_cut(plane: DataPlane) -> None:
    half = frame(TEXT, b"0123456789", masked=False)[:-4]
    upstream = plane.serve(agreeing(lambda end: end.peer.close(), after=half))
    with open_socket(plane, upstream.path) as socket, pytest.raises(Ended):
        socket.read()


def test_who_has_closed_and_shut_its_side_still_gets_the_others_close(plane: DataPlane) -> None:
    may_answer = threading.Event()

    def then(end: UpstreamEnd) -> None:
        assert end.read().code == 1000
        assert may_answer.wait(TIMEOUT_S)
        end.send(frame(TEXT, b"still", masked=False) + close(1000, masked=False))

    upstream = plane.serve(agreeing(then))
    with open_socket(plane, upstream.path) as socket:
        socket.send(close(1000))
        socket.client.half_close()
        may_answer.set()
        assert socket.read() == Frame(TEXT, b"still")
        assert socket.read().code == 1000
        assert socket.client.is_at_end()


def test_sockets_on_which_nothing_moves_are_ended(plane: DataPlane) -> None:
    ends = Ends()
    upstream = plane.serve(agreeing(ends), policies=policy(idleS=1.0))
    with open_socket(plane, upstream.path) as socket:
        for _ in range(6):
            time.sleep(0.3)  # a ping now and then keeps it open
            socket.send(frame(PING))
        before = time.monotonic()
        assert socket.read().code == 1001
        assert time.monotonic() - before > 0.5
        socket.send(close(1001))
        assert socket.client.is_at_end()
    assert [each.opcode for each in ends.await_the_end()] == [PING] * 6 + [CLOSE]
    assert ends.heard[-1].code == 1001


def test_an_end_that_does_not_answer_a_close_is_cut_off(plane: DataPlane) -> None:
    upstream = plane.serve(agreeing(lambda end: end.peer.wait_for_end()), policies=policy(idleS=1.0))
    before = plane.sockets()
    with open_socket(plane, upstream.path) as socket:
        assert socket.read().code == 1001
        assert socket.client.is_at_end()
    eventually(lambda: plane.sockets() <= before, 10.0, "the end of both connections")


# --- back-pressure ---------------------------------------------------------------------------------------------------
def _stalled(count: Callable[[], int]) -> int:
    last = -1
    deadline = time.monotonic() + TIMEOUT_S
    while last != (now := count()):
        assert time.monotonic() < deadline
        last = now
        time.sleep(0.5)
    return last


def test_a_slow_reader_holds_up_the_other_end_both_ways(plane: DataPlane) -> None:
    size, messages = 1024 * 1024, 60
    message = b"m" * size
    sent = [0]
    may_read = threading.Event()
    received = [0]

    def then(end: UpstreamEnd) -> None:
        for _ in range(messages):
            end.send(frame(BINARY, message, masked=False))
            sent[0] += 1
        assert may_read.wait(TIMEOUT_S)
        for _ in range(messages):
            received[0] += len(end.read().payload)
        end.send(close(1000, masked=False))

    upstream = plane.serve(agreeing(then))
    before = plane.rss_mib()
    with open_socket(plane, upstream.path) as socket:
        assert _stalled(lambda: sent[0]) < messages / 2
        assert plane.rss_mib() - before < 15
        for _ in range(messages):
            assert socket.read().payload == message
        pushed = [0]

        def push() -> None:
            masked = frame(BINARY, message)
            for _ in range(messages):
                socket.send(masked)
                pushed[0] += 1

        thread = threading.Thread(target=push)
        thread.start()
        assert _stalled(lambda: pushed[0]) < messages / 2
        assert plane.rss_mib() - before < 15
        may_read.set()
        assert socket.read().code == 1000
        thread.join()
    assert received[0] == size * messages


# --- revocation ------------------------------------------------------------------------------------------------------
REVOKED_WITHIN_S = 1.0


@pytest.fixture
def own(start_plane: Callable[..., DataPlane]) -> DataPlane:
    return start_plane()


def _drop_key(plane: DataPlane, service: str) -> None:
    plane.feed.drop("api_key", "key_1")


def _suspend_application(plane: DataPlane, service: str) -> None:
    plane.feed.drop("application", "app_1")


def _forbid_service(plane: DataPlane, service: str) -> None:
    plane.feed.put("application", application_wire(services=["another"]))


def _forbid_endpoint(plane: DataPlane, service: str) -> None:
    entries = [entry_wire("wle_1", "/elsewhere")]
    plane.feed.put("application", application_wire(endpoint_mode="listed", entries=entries))


def _drop_route(plane: DataPlane, service: str) -> None:
    plane.feed.drop("route", "rte_live")


def _disable_route(plane: DataPlane, service: str) -> None:
    plane.feed.put("route", plane.feed.records("route")["rte_live"] | {"is_active": False})


def _disable_service(plane: DataPlane, service: str) -> None:
    wire = next(each for each in plane.feed.records("service").values() if each["name"] == service)
    plane.feed.put("service", wire | {"is_active": False})


def _end_hours(plane: DataPlane, service: str) -> None:
    """The key may be used on another day alone."""
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    day = days[(datetime.now(UTC).weekday() + 3) % 7]
    plane.feed.put("api_key", plane.feed.records("api_key")["key_1"] | {"restrictions": {"hours": [{"days": [day]}]}})


REVOCATIONS = [
    _drop_key,
    _end_hours,
    _suspend_application,
    _forbid_service,
    _forbid_endpoint,
    _drop_route,
    _disable_route,
    _disable_service,
]


def stream(peer: Peer) -> None:
    """An event stream that never ends."""
    if peer.read_request() is None:
        return
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.send(b"9\r\ndata: 1\n\n\r\n")
    peer.wait_for_end()


def live_route(plane: DataPlane, upstream: Upstream) -> str:
    """An explicit route; returns the service's name."""
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_live", "/live", service=name))
    return name


@pytest.mark.parametrize("revoke", REVOCATIONS)
def test_a_socket_ends_within_a_second_of_revocation(own: DataPlane, revoke: Callable[[DataPlane, str], None]) -> None:
    service = live_route(own, own.serve(agreeing()))
    with open_socket(own, "/live") as socket:
        request_id = socket.answer.field("x-request-id")
        own.feed.put("service", own.feed.records("service")["svc_s1"] | {"request_timeout_ms": 5000})
        own.new_key()
        socket.send(frame(TEXT, b"other changes do it no harm"))
        assert socket.read().opcode == TEXT
        revoke(own, service)
        before = time.monotonic()
        assert socket.read().code == 1008
        assert time.monotonic() - before < REVOKED_WITHIN_S + 0.5  # of a busy machine
        socket.send(close(1008))
        assert socket.client.is_at_end()
    assert own.log_line(request_id)["code"] == "invalid_credentials"


def test_a_socket_that_needs_no_key_outlives_changes_whoever_opened_it(own: DataPlane) -> None:
    service = own.serve(agreeing()).path.rpartition("/")[2]
    own.feed.put("route", route_wire("rte_open", "/open", service=service, requires_key=False))
    own.feed.put("application", application_wire(id="app_no", name="no", services=[]))
    with open_socket(own, "/open", key=own.new_key(application="app_no")) as socket:
        own.new_key()
        assert socket.client.received_within(0.8) == b""
        socket.send(frame(TEXT, b"still there"))
        assert socket.read().opcode == TEXT
        own.feed.drop("application", "app_no")
        assert socket.read().code == 1008


@pytest.mark.parametrize("revoke", REVOCATIONS)
def test_an_event_stream_ends_visibly_within_a_second_of_revocation(
    own: DataPlane, revoke: Callable[[DataPlane, str], None]
) -> None:
    service = live_route(own, own.serve(stream))
    with own.connect() as client:
        _, body = client.send(own.request("GET", "/live")).begin_answer()
        assert next(body) == b"data: 1\n\n"
        own.new_key()
        assert client.received_within(0.8) in (b"", b"\r\n")  # of the chunk
        revoke(own, service)
        before = time.monotonic()
        with pytest.raises(CutShort):
            next(body)
        assert time.monotonic() - before < REVOKED_WITHIN_S + 0.5


def test_a_socket_and_a_stream_end_when_their_key_expires(own: DataPlane) -> None:
    socket_upstream, stream_upstream = own.serve(agreeing()), own.serve(stream)
    expires_at = time.time() + 2
    key = own.new_key(expires_at=expires_at)
    with open_socket(own, socket_upstream.path, key=key) as socket, own.connect() as client:
        _, body = client.send(own.request("GET", stream_upstream.path, key=key)).begin_answer()
        next(body)
        assert socket.read().code == 1008
        assert expires_at <= time.time() + 0.01
        with pytest.raises(CutShort):
            next(body)
        assert time.time() < expires_at + REVOKED_WITHIN_S + 0.5


def test_an_anonymous_socket_ends_when_its_public_entry_goes(own: DataPlane) -> None:
    upstream = own.serve(agreeing())
    entries = [entry_wire("wle_1", f"{upstream.path}/*", is_public=True)]
    own.feed.put("application", application_wire(entries=entries))
    with open_socket(own, f"{upstream.path}/x", key=None) as socket:
        own.feed.put("application", application_wire(entries=[]))
        assert socket.read().code == 1008


def test_sockets_with_keys_end_when_the_configuration_is_too_old_to_trust_one(
    start_plane: Callable[..., DataPlane],
) -> None:
    plane = start_plane(max_config_age_s=2.0)
    keyed, public = plane.serve(agreeing()), plane.serve(agreeing())
    entries = [entry_wire("wle_1", f"{public.path}/*", is_public=True)]
    plane.feed.put("application", application_wire(entries=entries))
    with (
        open_socket(plane, keyed.path) as socket,
        open_socket(plane, f"{public.path}/x", key=None) as anonymous,
    ):
        plane.feed.stop()
        assert socket.read().code == 1008
        anonymous.send(frame(TEXT, b"still here"))
        assert anonymous.read() == Frame(TEXT, b"still here")


# --- drain, accounts -------------------------------------------------------------------------------------------------
def test_sockets_are_told_when_the_worker_stops(own: DataPlane) -> None:
    ends = Ends()
    upstream = own.serve(agreeing(ends))
    silent = own.serve(agreeing(lambda end: end.peer.wait_for_end()))
    with open_socket(own, upstream.path) as socket, open_socket(own, silent.path) as ignoring:
        own.terminate()
        assert socket.read().code == 1001
        socket.send(close(1001))
        assert socket.client.is_at_end()
        assert ignoring.read().code == 1001
        assert own.process.wait(15) == 0
    assert ends.await_the_end()[-1].code == 1001
    assert {line["status_code"] for line in own.log_lines() if line["path"] != "/health"} == {101}


def test_a_socket_that_opens_while_the_worker_stops_is_told_at_once(own: DataPlane) -> None:
    may_agree = threading.Event()

    def script(peer: Peer) -> None:
        seen = peer.read_request()
        assert seen is not None
        assert may_agree.wait(TIMEOUT_S)
        accept = accept_of(seen.field("sec-websocket-key") or b"")
        peer.send(SWITCHED + UPGRADE + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        peer.wait_for_end()

    upstream = own.serve(script)
    with own.connect() as client:
        client.send(ask(own, upstream.path))
        upstream.wait_for()
        own.terminate()
        eventually(lambda: not is_listening(own.port), what="the end of listening")
        may_agree.set()
        assert client.answer().status == 101
        assert read_frame(client.exactly).code == 1001
        assert own.process.wait(15) == 0


def test_a_socket_is_logged_at_its_end_with_its_bytes_and_counted_while_it_is_open(own: DataPlane) -> None:
    upstream = own.serve(agreeing())

    def reported() -> dict[str, Any]:
        metrics = [message for message in own.feed.heard if message["type"] == "metrics"]
        return metrics[-1] if metrics else {"gauges": [], "counters": []}

    def gauge() -> float:
        return next((float(value) for name, _, value in reported()["gauges"] if name == "portcullis_websockets"), -1)

    with open_socket(own, f"{upstream.path}/x?secret=1") as socket:
        request_id = socket.answer.field("x-request-id")
        eventually(lambda: gauge() == 1, what="the gauge")
        assert request_id not in {line["request_id"] for line in own.log_lines()}
        time.sleep(0.5)  # so that the duration shows
        socket.send(frame(TEXT, b"x" * 100))
        socket.read()
        socket.send(close(1000))
        socket.read()
    line = own.log_line(request_id)
    assert (line["status_code"], line["path"], line["service"]) == (101, f"{upstream.path}/x", "s1")
    assert (line["bytes_in"], line["bytes_out"]) == (106 + 8, 102 + 4)
    assert line["response_time_ms"] > 500 > line["upstream_time_ms"]
    assert line["key_id"] == "key_1"
    eventually(lambda: gauge() == 0, what="the gauge")
    labels = {"method": "GET", "path": "/api/v1/s1/*", "status_code": "101", "service": "s1"}
    eventually(lambda: ["api_gateway_requests_total", labels, 1] in reported()["counters"], what="the counter")


# --- a library at both ends ------------------------------------------------------------------------------------------
class Library:
    """An echoing server of the library `websockets`, on a thread of its own."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.port = 0

    def __enter__(self) -> "Library":
        self._thread.start()
        assert self._is_up.wait(TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()

        async def handler(connection: Any) -> None:
            async for message in connection:
                await connection.send(message)

        async with serve(handler, "127.0.0.1", 0, **self._options) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._is_up.set()
            await self._stop.wait()


def test_a_library_at_both_ends_is_content_with_compression_and_subprotocols(plane: DataPlane) -> None:
    async def talk(path: str) -> None:
        async with connect(
            f"ws://127.0.0.1:{plane.port}{path}",
            additional_headers={"X-API-Key": plane.key},
            subprotocols=[Subprotocol("v1"), Subprotocol("v2")],
            max_size=None,
        ) as socket:
            assert socket.subprotocol == "v2"
            assert socket.protocol.extensions
            for message in ("hello", "ä" * 70_000, b"\0" * 200_000, ""):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.send([b"in ", b"several ", b"pieces"])
            assert await socket.recv() == b"in several pieces"
            await asyncio.wait_for(await socket.ping(), TIMEOUT_S)
            await socket.close(4321, "done")
            assert (socket.close_code, socket.close_reason) == (4321, "done")

    with Library(subprotocols=[Subprotocol("v2")], max_size=None) as server:
        upstream = plane.serve(default_url=f"http://127.0.0.1:{server.port}")
        asyncio.run(talk(upstream.path))


def test_messages_of_16_mib_pass_and_larger_ones_do_not(plane: DataPlane) -> None:
    async def talk(path: str) -> None:
        socket = await connect(
            f"ws://127.0.0.1:{plane.port}{path}",
            additional_headers={"X-API-Key": plane.key},
            compression=None,
            max_size=None,
        )
        message = b"m" * 16_777_216
        await socket.send(message)
        assert await socket.recv() == message
        await socket.send(message + b"m")
        with pytest.raises(ConnectionClosedError):
            await socket.recv()
        assert socket.close_code == 1009

    with Library(compression=None, max_size=None) as server:
        upstream = plane.serve(default_url=f"http://127.0.0.1:{server.port}")
        asyncio.run(talk(upstream.path))


def test_an_upstream_over_tls_is_reached(start_plane: Callable[..., DataPlane], tmp_path: Any) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    plane = start_plane(environment={"SSL_CERT_FILE": str(tmp_path / "ca.pem")})

    async def talk(path: str) -> None:
        async with connect(f"ws://127.0.0.1:{plane.port}{path}", additional_headers={"X-API-Key": plane.key}) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"

    with Library(ssl=context) as server:
        upstream = plane.serve(default_url=f"https://localhost:{server.port}")
        asyncio.run(talk(upstream.path))


def test_hundreds_of_sockets_talk_at_once(plane: DataPlane) -> None:
    async def one(path: str, number: int) -> None:
        url = f"ws://127.0.0.1:{plane.port}{path}"
        async with connect(url, additional_headers={"X-API-Key": plane.key}, open_timeout=60) as socket:
            for turn in range(10):
                message = f"{number}:{turn}"
                await socket.send(message)
                assert await socket.recv() == message

    async def all_of_them(path: str) -> None:
        await asyncio.gather(*(one(path, number) for number in range(300)))

    before = plane.sockets()
    with Library() as server:
        upstream = plane.serve(default_url=f"http://127.0.0.1:{server.port}")
        asyncio.run(all_of_them(upstream.path))
    eventually(lambda: plane.sockets() <= before + 2, 10.0, "the end of the connections")


# --- beside other policies -------------------------------------------------------------------------------------------
def test_a_stored_answer_is_no_answer_to_a_handshake(plane: DataPlane) -> None:
    def script(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            if seen.field("upgrade") is None:
                peer.send(b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nContent-Length: 2\r\n\r\nok")
                continue
            accept = accept_of(seen.field("sec-websocket-key") or b"")
            peer.send(SWITCHED + UPGRADE + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
            echo_frames(UpstreamEnd(peer, seen))
            return

    upstream = plane.serve(script, policies={"caching": {}, "compression": {}})
    with plane.connect() as client:
        for _ in range(2):
            assert client.send(plane.request("GET", f"{upstream.path}/x")).answer().body == b"ok"
    assert len(upstream.requests) == 1
    with open_socket(plane, f"{upstream.path}/x", "Accept-Encoding: gzip") as socket:
        assert socket.answer.field("cache-status") is None
        socket.send(frame(TEXT, b"hello"))
        assert socket.read() == Frame(TEXT, b"hello")
    with plane.connect() as client:
        assert client.send(plane.request("GET", f"{upstream.path}/x")).answer().body == b"ok"
    assert len(upstream.requests) == 2


def test_a_routes_transformation_applies_to_the_handshake(plane: DataPlane) -> None:
    upstream = plane.serve(agreeing())
    changes = {"request": {"headers": {"set": [{"name": "X-Set", "value": "by the route"}], "remove": ["X-Gone"]}}}
    name = upstream.path.rpartition("/")[2]
    plane.feed.put("route", route_wire("rte_ws_t", "/ws/changed", service=name, policies={"transformation": changes}))
    with open_socket(plane, "/ws/changed", "X-Gone: 1") as socket:
        socket.send(frame(TEXT, b"hello"))
        assert socket.read() == Frame(TEXT, b"hello")
    seen = upstream.requests[-1]
    assert (seen.field("x-set"), seen.field("x-gone")) == (b"by the route", None)
    assert seen.field("sec-websocket-key") == NONCE.encode()


def test_sockets_take_no_places_from_requests(plane: DataPlane) -> None:
    limits = {"concurrency": {"maxConnections": 1, "maxWaiting": 0, "waitMs": 0}}
    upstream = plane.serve(agreeing(), policies=limits)
    sockets = [open_socket(plane, upstream.path) for _ in range(3)]
    for socket in sockets:
        socket.client.socket.close()


def test_a_handshake_goes_to_another_target_or_the_fallback_when_one_is_away(plane: DataPlane) -> None:
    away, there = Upstream(agreeing()), plane.serve(agreeing())
    away.close()
    fallback = plane.serve(default_url=away.url, fallback_url=there.url)
    with open_socket(plane, fallback.path) as socket:
        socket.send(frame(TEXT, b"hello"))
        assert socket.read() == Frame(TEXT, b"hello")
    versions = [version_wire("v1", 1, away.url) | {"targets": [[away.url, 1], [there.url, 1]]}]
    balanced = plane.serve(versions=versions, current_version="v1", policies={"retries": {"on": ["connect"]}})
    for _ in range(4):
        open_socket(plane, balanced.path).client.socket.close()


def test_an_answer_that_is_slow_to_come_is_504(plane: DataPlane) -> None:
    upstream = plane.serve(lambda peer: peer.wait_for_end(), request_timeout_ms=500)
    with plane.connect() as client:
        failed(client.send(ask(plane, upstream.path)).answer(), 504, "upstream_timeout", "http_response_timeout")
        assert client.send(plane.request("GET", "/health")).answer().status == 200


# --- the policy ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"origins": ["app.example.com"]}, "is no origin"),
        ({"origins": ["https://app.example.com/path"]}, "is no origin"),
        ({"queryKey": "a b"}, "queryKey"),
        ({"maxMessageBytes": 1}, "maxMessageBytes"),
        ({"idleS": 0}, "idleS"),
        ({"origin": []}, "origin"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PolicyError, match=sentence):
        read(WebSockets, document)


def test_the_policy_is_set_in_the_admin_api(api: Any) -> None:
    members = {"enabled": True, "maxMessageBytes": 1000, "idleS": 60, "origins": ["https://app.example.com"]}
    answer = api.post("/admin/routing/services", {"name": "chat", "websockets": members}, format="json")
    assert answer.status_code == 201, answer.content
    assert answer.json()["websockets"].items() >= members.items()
    answer = api.post(
        "/admin/routing/services", {"name": "chat2", "websockets": {"origins": ["nonsense"]}}, format="json"
    )
    assert answer.status_code == 422
    assert "is no origin" in str(answer.json())
