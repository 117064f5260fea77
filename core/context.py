"""One request and its answer, as every step of the pipeline sees them.

An `Exchange` is the client's side: what was asked, what the steps decided, and how to answer. The protocol that
received the request subclasses it (`gateway_project.dataplane.protocol` for HTTP/1.1 sockets,
`gateway_project.dataplane.asgi_exchange` for any ASGI server). Header fields of answers travel as raw lines
(``b"name: value\\r\\n"``), which is what a socket wants.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from core.faults import ClientFault, GatewayFault

MAX_TARGET = 8192
MAX_HEAD = 64 * 1024
MAX_FIELDS = 100
CLIENT_LEFT = 499  # the status of a request whose client went before its answer was whole

# Fields that some step reads or that never pass as they are; all others are only forwarded.
NOTED = frozenset(
    b"accept accept-encoding access-control-request-headers access-control-request-method authorization "
    b"client-cert client-cert-chain connection content-length content-type cookie expect forwarded host "
    b"http2-settings keep-alive origin proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"traceparent tracestate transfer-encoding upgrade via x-api-version x-forwarded-for x-forwarded-host "
    b"x-forwarded-port x-forwarded-prefix x-forwarded-proto x-forwarded-server x-gateway-debug x-real-ip "
    b"x-request-id".split()
    # Believed by servers that expect a proxy to say them: another path than the one that was allowed, or that it came
    # by https. X-Forwarded-Proto says the latter truly.
    + b"front-end-https x-forwarded-protocol x-forwarded-scheme x-forwarded-ssl x-original-url x-rewrite-url "
    b"x-url-scheme".split()
)
# Of those, the ones that also go to the upstream as the client sent them.
_PASSED = frozenset(
    b"accept accept-encoding access-control-request-headers access-control-request-method content-type origin "
    b"x-api-version".split()
)
_SINGLE = frozenset(b"authorization client-cert content-length content-type expect host traceparent".split())


class BodySink(Protocol):
    """Whoever takes a request's body as it arrives, and learns when the client can take more or has gone."""

    def body_data(self, data: bytes) -> None: ...
    def body_end(self) -> None: ...
    def client_gone(self) -> None: ...
    def client_ready(self) -> None: ...
    def refuse_body(self, fault: GatewayFault) -> None: ...


class RequestHead:
    """Collects a request's header fields. Names arrive in any case and are kept in lower case.

    ``noted`` holds the fields that steps read, by name; ``passed`` the others, as wire pieces in order.
    """

    noted: dict[bytes, bytes]
    passed: list[bytes]
    field_count: int
    field_bytes: int
    is_head_whole: bool
    key_header: bytes  # configurable, so not in NOTED
    max_field_bytes: int

    def begin_head(self) -> None:
        self.noted = {}
        self.passed = []
        self.field_count = self.field_bytes = 0
        self.is_head_whole = False

    def add_field(self, name: bytes, value: bytes) -> None:
        """Take one field line. Raises ClientFault for one that is too much, doubled, or malformed (rules 24, 29)."""
        name = name.lower()
        if value.endswith((b" ", b"\t")):  # the parser leaves what may stand before the CRLF (RFC 9112 section 5.1)
            value = value.rstrip(b" \t")
        size = len(name) + len(value)
        self.field_count += 1
        self.field_bytes += size
        if size > self.max_field_bytes or self.field_count > MAX_FIELDS or self.field_bytes > MAX_HEAD:
            raise head_too_large(name, size, self.max_field_bytes)
        if self.is_head_whole:
            return  # a trailer: dropped, it must not pose as a header (RFC 9110 section 6.5.1)
        if name in NOTED or name == self.key_header:
            if name in self.noted:
                self.noted[name] = _combined(name, self.noted[name], value, self.key_header)
            else:
                self.noted[name] = value
            if name in _PASSED:
                self.passed += (name, b": ", value, b"\r\n")
        elif b"_" not in name and not name.startswith(b"x-gateway-"):
            # A name with an underscore looks like another one to CGI-like upstreams; x-gateway-* is ours (rule 24).
            self.passed += (name, b": ", value, b"\r\n")


def _combined(name: bytes, first: bytes, second: bytes, key_header: bytes) -> bytes:
    if name in _SINGLE or name == key_header:
        # Two different readings of one message are what request smuggling is made of (RFC 9112 sections 3.2, 6.3).
        raise ClientFault("bad_request", f"The request has more than one {name.decode('ascii')} field.")
    return first + (b"; " if name == b"cookie" else b", ") + second


def head_too_large(name: bytes, size: int, max_field_bytes: int) -> ClientFault:
    if size > max_field_bytes:
        field = name[:60].decode("ascii", "replace")
        return ClientFault("header_too_large", f"The field {field} is over the limit of {max_field_bytes} bytes.")
    return ClientFault(
        "header_too_large", f"The header section is over the limit of {MAX_HEAD} bytes or {MAX_FIELDS} fields."
    )


class Identity(Protocol):
    """The client's side of a request, the same for most requests of a connection."""

    @property
    def host(self) -> bytes: ...  # lower case, without port
    @property
    def origin(self) -> bytes: ...  # scheme and authority that the upstream is told
    @property
    def client(self) -> str: ...  # the address that counts, after trusted proxies
    @property
    def is_proxied(self) -> bool: ...  # a trusted proxy is the peer
    @property
    def forwarding_lines(self) -> bytes: ...  # X-Forwarded-* and Forwarded for the upstream
    @property
    def is_secure(self) -> bool: ...  # came by https


class Session:
    """What is known of a connection's client from its last request. Most requests of a connection come from the same
    caller, who is then recognised by comparing the credential, as long as the configuration's keys and applications
    are the same objects. It holds on to these two alone, not to a whole snapshot: connections idle for long. Of a token
    the same is known beside it."""

    __slots__ = (
        *("application", "applications", "certificate", "certified", "certified_by"),
        *("credential", "issuers", "key", "keys", "known_by", "recognised", "token", "token_applications", "uses"),
    )

    def __init__(self) -> None:
        self.credential = b""
        self.key: Any = None
        self.application: Any = None
        self.keys: Any = None
        self.applications: Any = None
        self.uses: Any = None  # what its requests are counted under (`gateway_project.dataplane.key_uses`)
        self.certificate: Any = None  # an `access.certificates.ClientCertificate` of the connection
        self.certified = ""  # the id of the application whose it is, by this index
        self.certified_by: Any = None
        self.recognised: Any = None  # `gateway_project.dataplane.tokens.Recognised`, under the four below
        self.token = b""
        self.known_by: Any = None
        self.issuers: Any = None
        self.token_applications: Any = None


class Forwarded(NamedTuple):
    """What goes to the upstream in the place of what the client sent."""

    passed: list[bytes]  # without fields that the client's Connection names
    query: bytes | None


class Exchange:
    """One request and its answer.

    No ``__slots__``: most attributes keep the default that stands on the class, which costs a request nothing.
    Fewer than 30 are set on the way of an ordinary request: beyond that CPython 3.11 gives every instance a
    dictionary of its own.
    """

    # --- the request's head: set by the protocol ---
    method: bytes
    protocol: bytes = b"HTTP/1.1"
    raw_path: bytes  # as sent, without the query
    query: bytes | None = None  # None: no "?" was sent
    noted: dict[bytes, bytes]
    passed: list[bytes]
    identity: Identity
    session: Session
    has_body: bool = False
    content_length: int | None = None  # None with a body: chunked

    # --- context ---
    started: float  # monotonic seconds
    request_id: bytes = b""
    trace_id: bytes = b""
    trace_lines: bytes  # traceparent, tracestate, x-request-id for the upstream

    # --- what the steps decided ---
    snapshot: Any = None
    path: bytes = b""  # canonical
    match: Any = None  # what it leads to: route, service or queue route
    known_path: Any = None  # what is remembered of its host, method and path (`gateway_project.dataplane.matching`)
    is_conditional: bool = False  # header fields or the query led there: its path is not to be remembered
    version: Any = None
    application: Any = None
    key: Any = None
    user: Any = None  # whose token came with it
    token_stands_on: Any = None  # by what the token was looked at again: issuer, keys, application, claims
    certificate: Any = None  # the client's, where it is what the request was admitted by
    own_template: str = ""  # the path label of metrics, where no route or service has one
    max_body_bytes: int | None = None  # not known before step 5
    answer_lines: bytes = b""  # request id, RateLimit, CORS: fields of whatever answer comes

    # --- what became of it ---
    status: int = 0
    fault_code: str = ""
    upstream_s: float | None = None  # seconds from forwarding to the upstream's head
    bytes_in: int = 0
    bytes_out: int = 0
    is_fallback: bool = False
    part_of: Any = None  # the exchange of the client whose aggregate it is a part of
    under_way: Any = None  # what it counts as in limits of concurrency, until it ends
    measured: Any = None  # under what the version's traffic is counted; None: not at all (what the client brings about)

    forwarded: Forwarded | None = None  # where a transformation changes the request: the exchange keeps the client's
    upstream_credentials: Any = None  # `routing.upstream_credentials.CredentialLines` of a service that has some

    sink: BodySink | None = None
    body_tee: Any = None  # makes of the body's sink one that sees the body too (`routing.mirroring`)
    filters: tuple[Any, ...] = ()  # makers of `routing.answers.Filter`: the first stands nearest to the client
    left: Any = None  # told that the client has gone before its answer was whole, or that its body failed while held
    upgrade: Any = None  # a `routing.websocket_handshake.Handshake`, where the request is to open a WebSocket
    rescue: Any = None  # asked before a fault of the forwarding is answered: has it answered in some other way?

    # --- how to take the body and to answer: each protocol's own ---
    def read_body(self, sink: BodySink) -> None:
        """Deliver the body to ``sink`` from now on, beginning with what has arrived. Once per exchange."""
        raise NotImplementedError

    def forget_body(self) -> None:
        """Of a request that is refused, though not yet: what arrives of the body is for nobody."""

    def stop_ahead(self) -> None:
        """End the connection with the answer if the client has sent many requests ahead, which would all wait."""

    def replace_body(self, body: bytes) -> None:
        """The body has been taken whole, and from now on it is this one: `read_body` delivers it, once more."""
        raise NotImplementedError

    def pause_body(self) -> None:
        """Ask the client to stop sending: the upstream is slower."""
        raise NotImplementedError

    def resume_body(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """A whole answer; ``lines`` hold its Content-Length, unless there is no body by nature."""
        raise NotImplementedError

    def start(self, status: int, lines: bytes, *, is_sized: bool) -> None:
        """Begin an answer whose body follows in pieces; sized: ``lines`` hold Content-Length, else we frame it."""
        raise NotImplementedError

    def write(self, data: bytes) -> bool:
        """A piece of the body. False: the client is slower; wait for ``sink.client_ready``."""
        raise NotImplementedError

    def is_taking(self) -> bool:
        """Of a client that holds up its answer: has it taken some of it since this was last asked?"""
        return False

    def end(self) -> None:
        """The body is whole."""
        raise NotImplementedError

    def abort(self) -> None:
        """The answer cannot be completed: make the truncation visible to the client."""
        raise NotImplementedError
