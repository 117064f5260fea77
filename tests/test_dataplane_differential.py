"""Request parsing against h11, another reader of the same RFCs: whatever both accept they must read alike, and what we
alone accept stands on a short list. Smuggling is made of such differences."""

import re
from typing import Any

import h11
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from core.context import NOTED
from tests.memory_transport import RecordingGateway, Taken, connected_client

many = settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
)

# What we take and h11 does not, with the reason why that is safe. Each is a pattern of the request's bytes.
ONLY_OURS = {
    "empty lines, or halves of them, before a request, as RFC 9112 section 2.2 has it: we send none": rb"\A[\r\n]",
    "several spaces in a request line, which may be forgiven (section 3): we send one": rb"\A[\r\n]*[^\r\n]*  ",
}

# --- requests --------------------------------------------------------------------------------------------------------
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"QUERY", b"M-SEARCH"])
segment = st.text("abcXYZ019-._~!$&'()*+,;=:@", max_size=8).map(str.encode) | st.sampled_from(
    [b"%20", b"%2F", b"%C3%A9"]
)
paths = st.lists(segment, min_size=1, max_size=4).map(lambda each: b"/" + b"/".join(each))
queries = st.just(b"") | st.sampled_from([b"?", b"?a=b", b"?a=/b&c=?", b"?%00"])
names = st.sampled_from(
    [
        b"Accept",
        b"Cookie",
        b"X-A",
        b"x-b",
        b"X_C",
        b"Via",
        b"X-Forwarded-For",
        b"Content-Type",
        b"!#$%&'*+-.^`|~",
        b"TE",
    ]
)
values = st.text(st.characters(min_codepoint=33, max_codepoint=126) | st.sampled_from(" \t"), max_size=20).map(
    lambda text: text.strip(" \t").encode()
) | st.sampled_from([b"", b"a, b", b"\xc3\xa9", b"a\tb", b'"q, u"', b"a:b"])
spaces = st.sampled_from([b"", b" ", b"  ", b"\t", b" \t "])
fields = st.builds(
    lambda name, before, value, after: name + b":" + before + value + after, names, spaces, values, spaces
)
bodies = st.binary(max_size=40)


def _chunked(parts: list[bytes], extension: bytes, trailer: bytes) -> bytes:
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part)
    return b"0".join([chunks, extension]) + b"\r\n" + trailer + b"\r\n"


framed = st.one_of(
    st.just((b"", b"")),
    bodies.map(lambda body: (b"Content-Length: %d\r\n" % len(body), body)),
    st.builds(
        lambda parts, extension, trailer: (b"Transfer-Encoding: chunked\r\n", _chunked(parts, extension, trailer)),
        st.lists(bodies, max_size=3),
        st.sampled_from([b"", b";a", b";a=b", b';a="b;c"']),
        st.sampled_from([b"", b"X-T: 1\r\n", b"Host: evil\r\nX-API-Key: k\r\n"]),
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A valid request, of any version and form that both know."""
    target = draw(st.just(b"http://b.test") | st.just(b"")) + draw(paths) + draw(queries)
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    lines = [b"Host: a.test", *draw(st.lists(fields, max_size=4))]
    framing, body = draw(framed)
    head = draw(methods) + b" " + target + b" HTTP/" + version + b"\r\n" + b"\r\n".join(draw(st.permutations(lines)))
    return head + b"\r\n" + framing + b"\r\n" + body


SENTINEL = b"GET /sentinel HTTP/1.1\r\nHost: a.test\r\n\r\n"
ODD = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b"\0",
    b":",
    b";",
    b",",
    b"0",
    b"9",
    b"-",
    b"+",
    b"\x0b",
    b"\x7f",
    b"\xff",
    b"_",
]
ODD += [
    b"chunked",
    b"identity",
    b"HTTP/1.1",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
]
ODD += [
    b"\r\n ",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"0x",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
]
mutations = st.lists(
    st.tuples(
        st.integers(0, 300), st.sampled_from(["insert", "replace", "delete", "double", "swap"]), st.sampled_from(ODD)
    ),
    max_size=3,
)


def mutated(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for where, how, odd in changes:
        where %= len(data) + 1
        before, after = data[:where], data[where:]
        if how == "insert":
            data = before + odd + after
        elif how == "replace":
            data = before + odd + after[1:]
        elif how == "delete":
            data = before + after[1:]
        elif how == "double":
            data = before + after[:9] + after
        else:
            data = before + after[1:2] + after[:1] + after[2:]
        data = data or b"\r\n"
    return data


# --- two readings ----------------------------------------------------------------------------------------------------
Reading = tuple[bytes, bytes, dict[bytes, bytes], bytes]  # method, target, fields, body


def reading_of_h11(data: bytes) -> tuple[Reading, bytes] | None:
    """Of the first request, and what is left behind it; None where h11 refuses or wants more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(data)
    body, head = b"", None
    try:
        while True:
            event: Any = connection.next_event()
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                told: dict[bytes, list[bytes]] = {}
                for name, value in head.headers:
                    told.setdefault(name, []).append(value)
                reading = (head.method, head.target, {name: _joined(name, every) for name, every in told.items()}, body)
                return reading, connection.trailing_data[0]
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def _joined(name: bytes, every: list[bytes]) -> bytes:
    return (b"; " if name == b"cookie" else b", ").join(every)


def our_reading(data: bytes) -> tuple[list[Taken], list[str]]:
    """The requests that came whole, and the refusals."""
    gateway = RecordingGateway()
    protocol, transport = connected_client(gateway)
    protocol.data_received(data)
    while transport.is_reading_paused and not transport.is_closing():
        gateway.loop.run()
    gateway.loop.run()
    return [each for each in gateway.requests if each.is_whole], gateway.refusals


def _fields_of(taken: Taken) -> dict[bytes, bytes]:
    every: dict[bytes, list[bytes]] = {}
    for i in range(0, len(taken.passed), 4):
        if taken.passed[i] not in NOTED:
            every.setdefault(taken.passed[i], []).append(taken.passed[i + 2])
    return taken.noted | {name: _joined(name, each) for name, each in every.items()}


def _is_passed(name: bytes) -> bool:
    return b"_" not in name and not name.startswith(b"x-gateway-")  # rule 24


@many
@given(requests(), mutations)
@example(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", [(0, "insert", b"\r\n")])
@example(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", [(3, "insert", b" ")])
def test_what_both_accept_they_read_alike_and_what_only_we_accept_is_listed(
    request: bytes, changes: list[tuple[int, str, bytes]]
) -> None:
    data = mutated(request, changes)
    other = reading_of_h11(data + SENTINEL)
    requests, refusals = our_reading(data + SENTINEL)
    if not requests or requests[0].path == b"/sentinel":
        return
    ours = requests[0]
    if other is None:
        assert any(re.search(pattern, data) for pattern in ONLY_OURS.values()), (data, ours)
        return
    (method, target, told, body), rest = other
    assert (ours.method, ours.body) == (method, body)
    assert _target_of(ours) == _path_of(target)
    assert _fields_of(ours) == {name: value for name, value in told.items() if _is_passed(name)}
    if rest.lstrip(b"\r\n") == SENTINEL and not refusals and len(requests) > 1:
        assert requests[1].path == b"/sentinel"


def _target_of(taken: Taken) -> bytes:
    return taken.path + (b"" if taken.query is None else b"?" + taken.query)


def _path_of(target: bytes) -> bytes:
    """Of either form (RFC 9112 section 3.2)."""
    absolute = re.match(rb"(?i)https?://[^/?]*", target)
    path = target[absolute.end() :] if absolute else target
    return path if path[:1] == b"/" or not absolute else b"/" + path


@many
@given(requests())
def test_what_is_valid_is_accepted_by_both(request: bytes) -> None:
    """But for what we refuse on purpose: chunks in HTTP/1.0, and fields that may not be said twice."""
    assert reading_of_h11(request) is not None
    requests, refusals = our_reading(request)
    doubled = len(re.findall(rb"(?mi)^content-type:", request.partition(b"\r\n\r\n")[0])) > 1
    old_chunks = b" HTTP/1.0\r\n" in request and b"\r\nTransfer-Encoding:" in request
    if doubled or old_chunks:
        assert refusals == ["bad_request"]
    else:
        assert requests
        assert requests[0].method == request.partition(b" ")[0]
        assert not refusals
