"""Requests of routes with a transformation, on their way to the forwarder (R6)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from core.context import Exchange, Forwarded
from gateway_project.dataplane.body_collector import collect_body
from gateway_project.dataplane.socket_exchange import too_large
from routing.balancing import TargetGroup
from routing.request_fields import RequestFields
from routing.terms import Terms
from routing.transformed_answer import TransformedAnswer
from routing.transforming import Transformer

if TYPE_CHECKING:
    from gateway_project.dataplane.app import Gateway


def transform(
    gateway: Gateway,
    transformer: Transformer,
    exchange: Exchange,
    group: TargetGroup,
    request_target: bytes,
    terms: Terms,
    point: int,
) -> None:
    """Change the request, have its answer changed, and forward it. A body that is to be changed is awaited first.
    Raises GatewayFault."""
    fields = RequestFields(exchange, exchange.path, gateway.key_header)
    must_change_body = transformer.changes_body_of(exchange)
    query = transformer.forwarded_query(exchange.query, fields)
    lines = transformer.forwarded_fields(exchange.passed, exchange.noted.get(b"connection"), fields)
    exchange.forwarded = Forwarded(lines, query)
    if transformer.changes_answers:
        exchange.filters += (
            partial(
                TransformedAnswer,
                transformer=transformer,
                exchange=exchange,
                fields=fields,
                refuse=gateway.refuse_through,
            ),
        )
    path = request_target.partition(b"?")[0]
    target = path if query is None else path + b"?" + query
    forward = partial(gateway.forwarder.forward, exchange, group, target, terms, point)
    if not must_change_body:
        forward()
        return

    def go_on(body: bytes) -> None:
        exchange.replace_body(transformer.forwarded_body(body, fields))
        forward()

    _bound(exchange, transformer)
    collect_body(gateway, exchange, go_on)


def _bound(exchange: Exchange, transformer: Transformer) -> None:
    """Raises ClientFault ``payload_too_large`` for what is known to be, before a byte of it is asked for."""
    assert transformer.request_body is not None  # `changes_body_of`
    limit = transformer.request_body.max_bytes
    if exchange.max_body_bytes is None or limit < exchange.max_body_bytes:
        exchange.max_body_bytes = limit
    if (exchange.content_length or exchange.bytes_in) > limit:
        raise too_large(limit)
