"""Rate limits through a running worker: what is admitted, and what clients are told (rules 6, 10)."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from keys.credential import generate
from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream
from tests.wires import application_wire, entry_wire


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


def application(plane: DataPlane, id: str, **changes: Any) -> str:
    plane.feed.put("application", application_wire(id=id, name=id, **changes))
    return plane.new_key(application=id)


def ask_all(plane: DataPlane, path: str, count: int, key: str | None) -> list[Answer]:
    """Answers to that many requests, sent together on one connection."""
    ask = plane.request("GET", path, key=key)
    with plane.connect() as client:
        client.send(ask * count)
        return [client.answer() for _ in range(count)]


def test_exactly_as_many_requests_are_admitted_as_the_limit_says(plane: DataPlane, upstream: Upstream) -> None:
    key = application(plane, "app_limited", rate_limit=20)
    seen = len(upstream.requests)
    answers = ask_all(plane, f"{upstream.path}/x", 50, key)
    assert [answer.status for answer in answers] == [200] * 20 + [429] * 30
    assert len(upstream.requests) == seen + 20


def test_every_answer_tells_the_limit_and_what_is_left_of_it(plane: DataPlane, upstream: Upstream) -> None:
    key = application(plane, "app_told", rate_limit=5)
    answers = ask_all(plane, f"{upstream.path}/x", 7, key)
    for number, answer in enumerate(answers):
        assert answer.field("ratelimit-policy") == '"application";q=5;w=60'
        matched = re.fullmatch(r'"application";r=(\d+);t=(\d+)', answer.field("ratelimit") or "")
        assert matched and int(matched[1]) == max(4 - number, 0)
        assert 0 < int(matched[2]) <= 60
    refused = answers[-1]
    assert refused.code == "rate_limited"
    assert refused.problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert refused.problem["violated-policies"] == ["application"]
    reset = int((refused.field("ratelimit") or "").rpartition("t=")[2])
    assert int(refused.field("retry-after") or 0) >= reset > 0
    assert refused.field("proxy-status") == 'portcullis; details="rate_limited"'


def test_a_limited_caller_is_admitted_again_when_it_was_told(plane: DataPlane, upstream: Upstream) -> None:
    """60 a minute come back one each second; a refusal costs nothing."""
    key = application(plane, "app_back", rate_limit=60)
    answers = ask_all(plane, f"{upstream.path}/x", 70, key)
    assert sum(answer.status == 200 for answer in answers) in (60, 61)
    wait_s = int(answers[-1].field("retry-after") or 0)
    assert wait_s == 1
    time.sleep(wait_s)  # what the client was told
    assert ask_all(plane, f"{upstream.path}/x", 1, key)[0].status == 200


def test_each_key_has_a_bucket_of_its_own(plane: DataPlane, upstream: Upstream) -> None:
    first = application(plane, "app_keys", rate_limit=3)
    second = plane.new_key(application="app_keys")
    for key in (first, second):
        statuses = [answer.status for answer in ask_all(plane, f"{upstream.path}/x", 4, key)]
        assert statuses == [200, 200, 200, 429]


def test_a_bucket_is_one_whatever_connections_and_spellings_are_used(plane: DataPlane, upstream: Upstream) -> None:
    key = application(plane, "app_one", rate_limit=3)
    path = f"{upstream.path}/x"
    assert plane.ask("GET", path, key=key).status == 200
    assert plane.ask("GET", path, f"Authorization: Bearer {key}", key=None).status == 200
    assert plane.ask("POST", f"{upstream.path}/%78?q", key=key, body=b"a").status == 200
    assert plane.ask("GET", path, key=key).status == 429


def test_an_entry_may_have_a_limit_of_its_own(plane: DataPlane, upstream: Upstream) -> None:
    entry = entry_wire("wle_limited", f"{upstream.path}/costly", rate_limit=2)
    key = application(plane, "app_entry", rate_limit=100, entries=[entry])
    answers = ask_all(plane, f"{upstream.path}/costly", 3, key)
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[-1].field("ratelimit-policy") == '"endpoint";q=2;w=60'
    assert ask_all(plane, f"{upstream.path}/cheap", 1, key)[0].status == 200


def test_without_any_other_the_default_limit_holds(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(rate_limit_requests=2, rate_limit_window_s=3600)
    answers = ask_all(plane, f"{plane.serve().path}/x", 3, plane.key)
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[0].field("ratelimit-policy") == '"default";q=2;w=3600'


def test_refusals_charge_nothing(plane: DataPlane, upstream: Upstream) -> None:
    entry = entry_wire("wle_only", f"{upstream.path}/allowed", methods=["GET"])
    key = application(plane, "app_refused", rate_limit=2, endpoint_mode="listed", entries=[entry])
    assert [answer.status for answer in ask_all(plane, f"{upstream.path}/forbidden", 10, key)] == [403] * 10
    assert [answer.status for answer in ask_all(plane, f"{upstream.path}/allowed", 3, key)] == [200, 200, 429]


def test_a_public_endpoint_is_charged_to_the_address(plane: DataPlane, upstream: Upstream) -> None:
    entry = entry_wire("wle_open", f"{upstream.path}/open", is_public=True, rate_limit=2)
    application(plane, "app_open", endpoint_mode="listed", entries=[entry])
    statuses = [
        plane.ask("GET", f"{upstream.path}/open", key=None, source=source).status
        for source in ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.3")
    ]
    assert statuses == [200, 200, 429, 200]


def test_a_bucket_survives_a_change_of_the_configuration(plane: DataPlane, upstream: Upstream) -> None:
    key = application(plane, "app_survives", rate_limit=3)
    path = f"{upstream.path}/x"
    assert [answer.status for answer in ask_all(plane, path, 3, key)] == [200] * 3
    plane.feed.put("application", application_wire(id="app_survives", name="renamed", rate_limit=3))
    assert ask_all(plane, path, 1, key)[0].status == 429


# --- failed authentications (rule 10) --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def strict(start_module_plane: Callable[..., DataPlane]) -> DataPlane:
    return start_module_plane(auth_failures_per_minute=5, trusted_proxies=("127.0.0.9",))


def failures(plane: DataPlane, path: str, count: int, source: str, *fields: str) -> list[int]:
    return [plane.ask("GET", path, *fields, key=generate("km_").key, source=source).status for _ in range(count)]


def test_an_address_that_fails_too_often_is_429_and_others_go_on(strict: DataPlane) -> None:
    path = f"{strict.serve().path}/x"
    assert failures(strict, path, 7, "127.0.0.4") == [401] * 5 + [429] * 2
    refused = strict.ask("GET", path, key=generate("km_").key, source="127.0.0.4")
    assert (refused.status, refused.code) == (429, "rate_limited")
    assert 0 < int(refused.field("retry-after") or 0) <= 60
    assert strict.ask("GET", path, source="127.0.0.2").status == 200
    assert failures(strict, path, 1, "127.0.0.2") == [401]


def test_a_right_key_passes_from_an_address_where_others_fail_and_no_wrong_one_is_told_from_another(
    strict: DataPlane,
) -> None:
    path = f"{strict.serve().path}/x"
    failures(strict, path, 5, "127.0.0.7")
    assert strict.ask("GET", path, source="127.0.0.7").status == 200
    wrong = {
        "unknown": generate("km_").key,
        "of an admin": strict.new_key(application=None),
        "of an application that is gone": strict.new_key(application="app_gone"),
        "expired": strict.new_key(expires_at=1.0),
        "nonsense": "nonsense",
    }
    answers = {what: strict.ask("GET", path, key=key, source="127.0.0.7") for what, key in wrong.items()}
    assert {what: (answer.status, answer.code) for what, answer in answers.items()} == dict.fromkeys(
        wrong, (429, "rate_limited")
    )
    assert len({answer.problem["detail"] for answer in answers.values()}) == 1


def test_refusals_say_the_same_for_every_path_and_mask_what_it_holds(strict: DataPlane) -> None:
    path = f"{strict.serve().path}/{'km_' + 'a' * 40}/%C3%A9"
    masked = path.replace("a" * 40, "a" * 10 + "***")
    answers = [strict.ask("GET", path, key=generate("km_").key, source="127.0.0.8") for _ in range(6)]
    wrong, refused = answers[0], answers[-1]
    assert [answer.status for answer in answers] == [401] * 5 + [429]
    assert wrong.body.decode() == (
        '{"type":"urn:portcullis:error:invalid_credentials","title":"The credentials are not valid","status":401,'
        f'"detail":"The API key is not valid.","instance":"{masked}","code":"invalid_credentials",'
        f'"request_id":"{wrong.field("x-request-id")}"}}'
    )
    assert refused.body.decode() == (
        '{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Too many requests",'
        '"status":429,"detail":"Too many failed authentications came from this address.",'
        f'"instance":"{masked}","code":"rate_limited","request_id":"{refused.field("x-request-id")}",'
        '"violated-policies":["authentication-failures"]}'
    )
    assert [name for name, _ in refused.fields][:3] == ["content-type", "proxy-status", "retry-after"]
    nowhere = strict.ask("GET", "/api/v1/nowhere", key=generate("km_").key, source="127.0.0.8")
    assert (nowhere.status, nowhere.code) == (404, "no_route")


def test_every_kind_of_failure_counts(strict: DataPlane) -> None:
    path = f"{strict.serve().path}/x"
    keys = ["nonsense", "km_x", strict.new_key(application=None), strict.new_key(expires_at=1.0), ""]
    for key in keys:
        assert strict.ask("GET", path, f"X-API-Key: {key}", key=None, source="127.0.0.5").status == 401
    assert failures(strict, path, 1, "127.0.0.5") == [429]


def test_requests_without_a_credential_and_successes_do_not_count(strict: DataPlane) -> None:
    path = f"{strict.serve().path}/x"
    for _ in range(10):
        assert strict.ask("GET", path, key=None, source="127.0.0.6").status == 401
        assert strict.ask("GET", path, source="127.0.0.6").status == 200


def test_ipv6_clients_are_counted_by_their_64(strict: DataPlane) -> None:
    path = f"{strict.serve().path}/x"
    for number in range(5):
        assert failures(strict, path, 1, "127.0.0.9", f"X-Forwarded-For: 2001:db8::{number}") == [401]
    assert failures(strict, path, 1, "127.0.0.9", "X-Forwarded-For: 2001:db8::ffff") == [429]
    assert failures(strict, path, 1, "127.0.0.9", "X-Forwarded-For: 2001:db8:0:1::1") == [401]
