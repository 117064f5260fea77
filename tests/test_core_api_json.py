"""JSON that the admin API takes, and how it says what is wrong with any other."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from tests.admin_api import SERVICES, problem_of

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"name": NaN}', 400),
        (b'{"name": "a\\u0000b"}', 400),
        (b'{"name": "\\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b'{"name": ' + b"[" * 1000 + b"]" * 1000 + b"}", 400),
        (b'{"name": ' + b'{"a":' * 40 + b"1" + b"}" * 41, 400),
        (b'{"name": [[[[["orders"]]]]]}', 422),
        (b'{"name": "orders", "timeout": 1e308}', 422),
        (b'{"name": "orders", "timeout": -1e308}', 422),
        (b"[]", 422),
        (b"5", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b'{"name": 5}', 422),
        (b'{"name": null}', 422),
        (b'{"name": ["orders"]}', 422),
        (b'{"name": {"a": 1}}', 422),
        (b'{"name": "orders", "isActive": "yes"}', 422),
        (b'{"name": "orders", "requestTimeoutMs": 1' + b"0" * 40 + b"}", 422),
        (b'{"name": "orders", "requestTimeoutMs": 1' + b"0" * 5000 + b"}", 400),
        (b'{"name": "orders", "requestTimeoutMs": 1.5}', 422),
        (b'{"name": "orders", "requestTimeoutMs": 1e400}', 400),
        (b'{"name": "orders", "isActiv": true}', 422),
        (b'{"name": "orders", "is_active": true}', 422),
        (b'{"name": "orders", "id": "svc_x"}', 422),
        (b'{"name": "orders", "revision": 7}', 422),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bad_json_is_the_clients_fault(api: APIClient, body: bytes, status: int) -> None:
    response = api.post(SERVICES, body, content_type="application/json")

    problem_of(response, status, "bad_request" if status == 400 else "invalid_field")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ["name", "defaultUrl", "description", "implicitRoute", "requestTimeoutMs", "url", "timeout", "pathPrefix"]


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON))
def test_no_json_whatever_is_a_failure_of_ours(api: APIClient, body: dict[str, Any]) -> None:
    response = api.post(SERVICES, body)

    assert response.status_code in (201, 400, 409, 422), response.content


def test_an_unknown_field_is_named_as_the_client_spelt_it(api: APIClient) -> None:
    problem = problem_of(api.post(SERVICES, {"name": "orders", "odd_one": 1}), 422, "invalid_field")

    assert problem["errors"] == {"odd_one": ["There is no such field."]}


def test_fields_are_named_in_camel_case_whoever_refuses_them(api: APIClient) -> None:
    body = {"name": "orders", "defaultUrl": "nowhere", "pathPrefix": "x"}
    problem = problem_of(api.post(SERVICES, body), 422, "invalid_field")

    assert set(problem["errors"]) == {"defaultUrl", "pathPrefix"}


def test_only_json_is_taken(api: APIClient) -> None:
    response = api.post(SERVICES, "name=orders", content_type="application/x-www-form-urlencoded")

    problem_of(response, 415, "unsupported_media_type")


def test_a_body_beyond_the_limit_is_refused(api: APIClient) -> None:
    body = b'{"description": "' + b"a" * (1024 * 1024) + b'"}'

    problem_of(api.post(SERVICES, body, content_type="application/json"), 413, "payload_too_large")


@pytest.mark.parametrize("body", ['{"name": "a", "name": "b"}', '{"name": "a", "access": {"x": 1, "x": 2}}'])
def test_a_member_that_stands_twice_is_refused(api: APIClient, body: str) -> None:
    response = api.post(SERVICES, body, content_type="application/json")

    assert "twice" in problem_of(response, 400, "bad_request")["detail"]
