"""Faults on the wire (RFC 9457): whatever is remembered of a fault, the bytes are the same."""

import gc
import weakref
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.faults import GatewayFault, PolicyDenied, UpstreamFault
from core.masking import mask
from core.problem import common, render
from keys.verify import invalid_credentials, throttled

REQUEST_ID = "70583c1d750aa0053673fe5c7cb0c38d"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
MEMBERS = st.dictionaries(
    st.sampled_from(["errors", "violated-policies", "supported"]), st.lists(TEXT, max_size=2), max_size=2
)


def document_of(fault: GatewayFault, instance: str) -> dict[str, Any]:
    """Its members, in order."""
    return {
        "type": fault.kind.type,
        "title": fault.kind.title,
        "status": fault.kind.status,
        "detail": fault.detail,
        "instance": mask(instance),
        "code": fault.kind.code,
        "request_id": REQUEST_ID,
        **fault.members,
    }


@given(detail=TEXT, members=MEMBERS, instance=TEXT, wait_s=st.none() | st.integers(0, 10**6))
def test_a_document_is_its_members_in_order(
    detail: str, members: dict[str, Any], instance: str, wait_s: int | None
) -> None:
    fault = PolicyDenied("rate_limited", detail, members=members, retry_after_s=wait_s)
    answers = [render(each, instance, REQUEST_ID) for each in (fault, common(fault), common(fault).again())]
    assert answers[0] == answers[1] == answers[2]
    status, fields, body = answers[0]
    assert status == 429
    assert body == orjson.dumps(document_of(fault, instance))
    assert dict(fields).get(b"retry-after") == (None if wait_s is None else b"%d" % wait_s)


def test_upstreams_that_fail_are_named() -> None:
    fault = UpstreamFault("upstream_reset", "x", request_sent=True, proxy_error="connection_refused", next_hop="a")
    _, fields, _ = render(fault, "/", REQUEST_ID)
    assert dict(fields)[b"proxy-status"] == b'portcullis; error=connection_refused; next-hop="a"'


@pytest.mark.parametrize("make", [invalid_credentials, lambda: throttled(7)], ids=["invalid", "throttled"])
def test_what_is_raised_again_and_again_keeps_nothing_of_a_request(make: Any) -> None:
    class Request:
        pass

    def refuse() -> weakref.ref[Request]:
        request = Request()
        with suppress(PolicyDenied):
            raise make()
        return weakref.ref(request)

    gc.disable()  # so that nothing but the end of the refusal frees anything
    try:
        assert [refuse()() for _ in range(3)] == [None, None, None]
    finally:
        gc.enable()
    assert make().__traceback__ is None
    assert make() is not make()
    assert str(make()) == make().detail
