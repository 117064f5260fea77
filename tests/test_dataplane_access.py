"""Who may call what, asked of a running worker over its socket (rules 4, 5, 6, 11)."""

import time
from typing import Any

import pytest

from keys.credential import generate
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream
from tests.wires import application_wire, entry_wire, route_wire, version_wire


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


def application(plane: DataPlane, id: str, **changes: Any) -> str:
    """An application; the result is a key of it."""
    plane.feed.put("application", application_wire(id=id, name=id, **changes))
    return plane.new_key(application=id)


# --- keys ----------------------------------------------------------------------------------------------------------
def test_a_key_is_taken_from_its_field_or_as_a_bearer_token(plane: DataPlane, upstream: Upstream) -> None:
    path = f"{upstream.path}/x"
    assert plane.ask("GET", path).status == 200
    assert plane.ask("GET", path, f"Authorization: Bearer {plane.key}", key=None).status == 200
    assert plane.ask("GET", path, f"authorization: bEARER {plane.key}", key=None).status == 200


def test_no_credential_is_401_with_a_challenge(plane: DataPlane, upstream: Upstream) -> None:
    answer = plane.ask("GET", f"{upstream.path}/x", key=None)
    assert (answer.status, answer.code) == (401, "missing_credentials")
    assert answer.field("www-authenticate") == 'Bearer realm="portcullis"'
    assert "X-API-Key" in answer.problem["detail"]


def wrong_keys(plane: DataPlane) -> dict[str, str]:
    """By what is wrong. Suspended keys, and those of inactive applications, are absent from what workers get."""
    revoked = plane.new_key()
    plane.feed.drop("api_key", list(plane.feed.records("api_key"))[-1])
    return {
        "unknown": generate("km_").key,
        "a wrong checksum": plane.key[:-1] + ("0" if plane.key[-1] != "0" else "1"),
        "truncated": plane.key[:-5],
        "garbage": "let me in",
        "empty": "",
        "very long": "km_" + "a" * 8000,
        "expired": plane.new_key(expires_at=time.time() - 1),
        "revoked": revoked,
        "of an application that is gone": plane.new_key(application="app_gone"),
        "an admin key": plane.new_key(application=None, scopes=["admin:*"]),
        "of another gateway": generate("xx_").key,
    }


def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(plane: DataPlane, upstream: Upstream) -> None:
    seen = len(upstream.requests)
    answers = {}
    for wrong, key in wrong_keys(plane).items():
        answer = plane.ask("GET", f"{upstream.path}/x", f"X-API-Key: {key}", key=None)
        assert (answer.status, answer.code) == (401, "invalid_credentials"), wrong
        answers[wrong] = without_ids(answer)
    assert len(set(answers.values())) == 1, answers
    assert len(upstream.requests) == seen


def without_ids(answer: Answer) -> tuple[object, ...]:
    fields = [(name, value) for name, value in answer.fields if name not in ("date", "x-request-id")]
    members = {name: value for name, value in answer.problem.items() if name != "request_id"}
    return (answer.status, *fields, *sorted(map(str, members.items())))


def test_a_revoked_key_is_refused_within_a_second_also_on_a_connection_that_used_it(
    plane: DataPlane, upstream: Upstream
) -> None:
    key = plane.new_key()
    id = list(plane.feed.records("api_key"))[-1]
    ask = plane.request("GET", f"{upstream.path}/x", key=key)
    with plane.connect() as client:
        assert client.send(ask).answer().status == 200
        revoked_at = time.monotonic()
        plane.feed.drop("api_key", id)
        eventually(lambda: client.send(ask).answer().status == 401, 1.0, "the refusal")
        assert time.monotonic() - revoked_at < 1.0


def test_a_key_is_refused_from_the_moment_it_expires(plane: DataPlane, upstream: Upstream) -> None:
    key = plane.new_key(expires_at=time.time() + 0.5)
    ask = plane.request("GET", f"{upstream.path}/x", key=key)
    with plane.connect() as client:
        assert client.send(ask).answer().status == 200
        eventually(lambda: client.send(ask).answer().status == 401, 2.0, "the refusal")


def test_two_keys_on_one_connection_are_two_callers(plane: DataPlane, upstream: Upstream) -> None:
    other = application(plane, "app_caller", services=[])
    with plane.connect() as client:
        for key, status in ((plane.key, 200), (other, 403), (plane.key, 200), ("km_wrong", 401), (plane.key, 200)):
            assert client.send(plane.request("GET", f"{upstream.path}/x", key=key)).answer().status == status
        assert client.send(plane.request("GET", f"{upstream.path}/x", key=None)).answer().status == 401


def test_a_key_given_twice_is_400(plane: DataPlane, upstream: Upstream) -> None:
    answer = plane.ask("GET", f"{upstream.path}/x", f"X-API-Key: {plane.key}")
    assert (answer.status, answer.code) == (400, "bad_request")


# --- applications and whitelists -------------------------------------------------------------------------------------
def test_a_key_for_another_service_is_403(plane: DataPlane, upstream: Upstream) -> None:
    key = application(plane, "app_other", services=["elsewhere"])
    answer = plane.ask("GET", f"{upstream.path}/x", key=key)
    assert (answer.status, answer.code) == (403, "service_not_allowed")


def test_listed_without_entries_allows_nothing(plane: DataPlane, upstream: Upstream) -> None:
    key = application(plane, "app_listed", endpoint_mode="listed")
    answer = plane.ask("GET", f"{upstream.path}/x", key=key)
    assert (answer.status, answer.code) == (403, "endpoint_not_whitelisted")


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/items/7", ""),
        ("POST", "/items/7", "method_not_whitelisted"),
        ("GET", "/items", "endpoint_not_whitelisted"),
        ("GET", "/items/7/parts", "endpoint_not_whitelisted"),
        ("GET", "/%69tems/7", ""),
        ("GET", "/ITEMS/7", "endpoint_not_whitelisted"),
        ("GET", "/tree/a/b/c", ""),
        ("GET", "/tree/", ""),
        ("GET", "/tree", "endpoint_not_whitelisted"),
        ("GET", "/items%2F7", "endpoint_not_whitelisted"),
        ("GET", "/admin/users", "endpoint_not_whitelisted"),
        ("GET", "/%61dmin/users", "endpoint_not_whitelisted"),
    ],
)
def test_only_whitelisted_endpoints_and_methods_pass(
    plane: DataPlane, upstream: Upstream, method: str, path: str, code: str
) -> None:
    entries = [
        entry_wire("wle_1", f"{upstream.path}/items/{{id}}", methods=["GET"]),
        entry_wire("wle_2", f"{upstream.path}/tree/*", methods=["GET"]),
    ]
    key = application(plane, "app_entries", endpoint_mode="listed", entries=entries)
    answer = plane.ask(method, upstream.path + path, key=key)
    assert (answer.status == 200) if not code else ((answer.status, answer.code) == (403, code))


def test_a_whitelist_holds_for_the_next_request_on_the_same_connection(plane: DataPlane, upstream: Upstream) -> None:
    key = application(plane, "app_changed", endpoint_mode="all")
    ask = plane.request("GET", f"{upstream.path}/x", key=key)
    with plane.connect() as client:
        assert client.send(ask).answer().status == 200
        plane.feed.put("application", application_wire(id="app_changed", name="app_changed", endpoint_mode="listed"))
        assert client.send(ask).answer().code == "endpoint_not_whitelisted"


def test_whoever_may_use_everything_may_use_nothing_of_another_tenant(plane: DataPlane) -> None:
    upstream = plane.serve(tenant="theirs")
    name = upstream.path.rpartition("/")[2]
    entry = entry_wire("wle_not_theirs", f"{upstream.path}/public", is_public=True)
    key = application(plane, "app_ours", entries=[entry])
    answer = plane.ask("GET", f"{upstream.path}/x", key=key)
    assert (answer.status, answer.code) == (403, "service_not_allowed")
    application(plane, "app_names", services=[name])
    assert plane.ask("GET", f"{upstream.path}/public", key=None).status == 401
    theirs = application(plane, "app_theirs", tenant="theirs")
    assert plane.ask("GET", f"{upstream.path}/x", key=theirs).status == 200


# --- public entries --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def public(plane: DataPlane) -> Upstream:
    upstream = plane.serve()
    entry = entry_wire("wle_public", f"{upstream.path}/public/*", methods=["GET"], is_public=True)
    name = upstream.path.rpartition("/")[2]
    application(plane, "app_public", services=[name], endpoint_mode="listed", entries=[entry])
    return upstream


def test_anybody_may_call_a_public_endpoint(plane: DataPlane, public: Upstream) -> None:
    answer = plane.ask("GET", f"{public.path}/public/x", key=None)
    assert answer.status == 200
    assert public.requests[-1].field("x-gateway-application") == b"app_public"


@pytest.mark.parametrize(("method", "path"), [("POST", "/public/x"), ("GET", "/private"), ("GET", "/public")])
def test_anything_beside_a_public_endpoint_needs_a_key(
    plane: DataPlane, public: Upstream, method: str, path: str
) -> None:
    assert plane.ask(method, public.path + path, key=None).code == "missing_credentials"


@pytest.mark.parametrize("field", ["X-API-Key: nonsense", "Authorization: Bearer nonsense"])
def test_an_invalid_credential_is_401_even_at_a_public_endpoint(plane: DataPlane, public: Upstream, field: str) -> None:
    assert plane.ask("GET", f"{public.path}/public/x", field, key=None).code == "invalid_credentials"


@pytest.mark.parametrize("behind", ["\t{}", " \t{}", "\t {}", " {}\t{}", "={}", ", {}", "\xa0{}", ""])
@pytest.mark.parametrize("scheme", ["Bearer", "bEARER"])
def test_what_begins_with_the_scheme_bearer_is_never_anonymous_and_never_the_upstreams(
    plane: DataPlane, public: Upstream, scheme: str, behind: str
) -> None:
    name, served = public.path.rpartition("/")[2], len(public.requests)
    plane.feed.put("route", route_wire("rte_open", "/open", service=name, requires_key=False))
    for path in (f"{public.path}/public/x", "/open", f"{public.path}/private"):
        answer = plane.ask("GET", path, f"Authorization: {scheme}{behind.format(plane.key, plane.key)}", key=None)
        assert answer.code == "invalid_credentials"
    assert len(public.requests) == served


@pytest.mark.parametrize("credentials", ["Basic YTpi", "Bearers YTpi", "Bearer+jwt YTpi", "Bearer-", "Bear er"])
def test_a_credential_of_another_scheme_is_the_upstreams_and_counts_as_anonymous(
    plane: DataPlane, public: Upstream, credentials: str
) -> None:
    answer = plane.ask("GET", f"{public.path}/public/x", f"Authorization: {credentials}", key=None)
    assert answer.status == 200
    assert public.requests[-1].field("authorization") == credentials.encode()


# --- versions --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def versions(plane: DataPlane) -> tuple[Upstream, Upstream]:
    """One service; v1 gets four fifths of the requests, v2 one fifth."""
    first, second = plane.serve(), plane.serve()
    number = first.path.rpartition("/s")[2]
    wire = plane.feed.records("service")[f"svc_s{number}"]
    both = [version_wire("v1", 80, first.url), version_wire("v2", 20, second.url), version_wire("v3", 0, second.url)]
    plane.feed.put("service", wire | {"default_url": "", "versions": both})
    return first, second


def versioned(path: str, version: str) -> str:
    return path.replace("/api/v1/", f"/api/{version}/")


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ("v1", ["X-API-Version: v2"]),
        ("v1", ["X-API-Version: 2"]),
        ("v1", ["Accept: application/json;version=2"]),
        ("v1", ['Accept: text/html, application/json; q=0.5; version="v2"']),
        ("v2", []),
        ("v2", ["X-API-Version: v2", "Accept: a/b;version=2"]),
    ],
)
def test_a_request_may_name_the_version(
    plane: DataPlane, versions: tuple[Upstream, Upstream], version: str, fields: list[str]
) -> None:
    first, second = versions
    seen = len(second.requests)
    assert plane.ask("GET", versioned(f"{first.path}/x", version), *fields).status == 200
    assert len(second.requests) == seen + 1


@pytest.mark.parametrize(
    ("version", "field", "status", "code"),
    [
        ("v2", "X-API-Version: v1", 400, "bad_request"),
        ("v1", "X-API-Version: v7", 404, "unknown_version"),
        ("v9", "Accept: */*", 404, "unknown_version"),
    ],
)
def test_contradictory_and_unknown_versions_are_refused(
    plane: DataPlane, versions: tuple[Upstream, Upstream], version: str, field: str, status: int, code: str
) -> None:
    answer = plane.ask("GET", versioned(f"{versions[0].path}/x", version), field)
    assert (answer.status, answer.code) == (status, code)


def test_a_version_that_the_application_may_not_use_is_403_and_gets_none_of_its_traffic(
    plane: DataPlane, versions: tuple[Upstream, Upstream]
) -> None:
    first, second = versions
    path = f"{first.path}/x"
    key = application(plane, "app_v2", versions=["v2"])
    seen = len(second.requests)
    assert plane.ask("GET", path, "X-API-Version: v1", key=key).code == "version_not_allowed"
    assert plane.ask("GET", path, key=key).status == 200
    assert len(second.requests) == seen + 1
    assert plane.ask("GET", path, key=application(plane, "app_none", versions=[])).code == "version_not_allowed"


def test_weights_split_callers_roughly_and_each_stays_where_it_is(
    plane: DataPlane, versions: tuple[Upstream, Upstream]
) -> None:
    first, second = versions
    before = len(first.requests), len(second.requests)
    with plane.connect() as client:
        for _ in range(100):
            ask = plane.request("GET", f"{first.path}/x", key=plane.new_key())
            upstreams = []
            for _ in range(2):
                counted = len(second.requests)
                assert client.send(ask).answer().status == 200
                upstreams.append(len(second.requests) - counted)
            assert upstreams[0] == upstreams[1]
    counts = len(first.requests) - before[0], len(second.requests) - before[1]
    assert sum(counts) == 200
    assert 10 <= counts[1] <= 70  # of 100 keys, 20 ± 4 are expected


# --- services --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/api/v1/nowhere/x", "/api/v1/", "/api/v1", "/api/", "/", "/favicon.ico", "/api/x/y"])
def test_what_nothing_is_routed_at_is_404_whoever_asks(plane: DataPlane, path: str) -> None:
    for key in (plane.key, None, "wrong"):
        answer = plane.ask("GET", path, key=key)
        assert (answer.status, answer.code) == (404, "no_route")


def test_a_service_that_is_not_active_is_404(plane: DataPlane) -> None:
    upstream = plane.serve(is_active=False, implicit=False)
    assert plane.ask("GET", f"{upstream.path}/x").code == "no_route"


def test_a_service_without_anything_to_serve_is_503_and_says_when_to_come_back(plane: DataPlane) -> None:
    upstream = plane.serve(default_url="")
    answer = plane.ask("GET", f"{upstream.path}/x")
    assert (answer.status, answer.code) == (503, "no_healthy_target")
    assert answer.field("retry-after") == "5"
