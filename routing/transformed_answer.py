"""An answer on its way through a route's transformation (R6)."""

from __future__ import annotations

from collections.abc import Callable

from core.context import CLIENT_LEFT, Exchange
from core.faults import ClientFault, ExchangeFault, GatewayFault
from routing.answers import BODILESS, AnswerHead, AnswerSink, Filter
from routing.json_changes import NoJson
from routing.request_fields import RequestFields
from routing.transforming import OF_THE_BYTES, Transformer, is_json

Refuse = Callable[[Exchange, AnswerSink, GatewayFault], None]  # answer with the fault, to the sink


class TransformedAnswer(Filter):
    """Changes an answer's fields as it passes; a JSON body that is to be changed is gathered first."""

    def __init__(
        self, onward: AnswerSink, *, transformer: Transformer, exchange: Exchange, fields: RequestFields, refuse: Refuse
    ) -> None:
        super().__init__(onward)
        self._transformer = transformer
        self._exchange = exchange
        self._fields = fields
        self._refuse = refuse
        self._head: AnswerHead | None = None  # of an answer that is being gathered
        self._body = bytearray()
        self._is_over = False  # something else has been answered

    def whole(self, head: AnswerHead, body: bytes) -> None:
        if self._must_change(head) and body:
            self._answer_changed(head, body)
        else:
            self._transformer.change_answer_head(head, self._fields)
            self.onward.whole(head, body)

    def start(self, head: AnswerHead) -> None:
        if not self._must_change(head):
            self._transformer.change_answer_head(head, self._fields)
            self.onward.start(head)
            return
        self._head = head
        length = head.value(b"content-length")
        if length is not None and int(length) > self._limit:
            self._refuse_larger()

    def data(self, data: bytes) -> bool:
        if self._head is None:
            return self._is_over or self.onward.data(data)
        self._body += data
        if len(self._body) > self._limit:
            self._refuse_larger()
        return True

    def end(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            self._answer_changed(head, bytes(self._body))
        elif not self._is_over:
            self.onward.end()

    def abort(self) -> None:
        if self._head is not None:
            self._head = None
            if self._exchange.status != CLIENT_LEFT:
                self._fail("upstream_reset", "connection_terminated", "ended within its answer")
        elif not self._is_over:
            self.onward.abort()

    @property
    def _limit(self) -> int:
        changer = self._transformer.answer_body
        return changer.max_bytes if changer is not None else 0

    def _must_change(self, head: AnswerHead) -> bool:
        """Whether the body must be changed. What is said of the old bytes goes, also where there is no body to see: a
        HEAD and a 304 speak of what a GET gets."""
        if self._transformer.answer_body is None or head.status == 206:
            return False
        is_changed = is_json(head.value(b"content-type") or b"") and not _is_encoded(head)
        if is_changed or head.status == 304:
            _weaken_etag(head)
        has_body = head.status not in BODILESS and self._exchange.method != b"HEAD"
        if is_changed and not has_body:
            head.remove(b"content-length", *OF_THE_BYTES)
        return is_changed and has_body

    def _answer_changed(self, head: AnswerHead, body: bytes) -> None:
        changer = self._transformer.answer_body
        assert changer is not None  # `_must_change`
        if len(body) > changer.max_bytes:
            self._refuse_larger()
            return
        try:
            changed = changer.changed(body, self._fields) if body else body
        except NoJson:
            self._fail(
                "upstream_invalid_response", "http_protocol_error", "said that its answer is JSON, and it is none"
            )
        except ClientFault as fault:
            self._refuse_with(fault)
        else:
            head.remove(b"content-length", *OF_THE_BYTES)
            self._transformer.change_answer_head(head, self._fields)
            self.onward.whole(head, changed)

    def _refuse_larger(self) -> None:
        what = f"sent a JSON answer of more than the {self._limit} bytes that the route changes"
        self._fail("upstream_invalid_response", "http_response_body_size", what)

    def _fail(self, code: str, proxy_error: str, what: str) -> None:
        match = self._exchange.match
        next_hop = match.destination if match is not None else ""
        detail = f"The upstream {next_hop} {what}."
        self._refuse_with(ExchangeFault(code, detail, request_sent=True, proxy_error=proxy_error, next_hop=next_hop))

    def _refuse_with(self, fault: GatewayFault) -> None:
        """Answer with the fault; nobody needs the rest of what the upstream sends."""
        self._head = None
        self._is_over = True
        self._body.clear()
        exchange = self._exchange
        forwarding, exchange.sink = exchange.sink, None
        if forwarding is not None:
            forwarding.client_gone()
        self._refuse(exchange, self.onward, fault)


def _is_encoded(head: AnswerHead) -> bool:
    return (head.value(b"content-encoding") or b"identity").lower() != b"identity"


def _weaken_etag(head: AnswerHead) -> None:
    """Other bytes under the same validator are no longer what it promised (RFC 9110 section 8.8.1)."""
    etag = head.value(b"etag")
    if etag is not None and not etag.startswith(b"W/"):
        head.remove(b"etag")
        head.add(b"etag", b"W/" + etag)
