"""Clients' tokens at a running worker, over its socket (A4, A7; rules 10, 11, 12, 20, 24)."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from typing import Any

import pytest

from core.faults import InternalFault
from core.wire import encode
from gateway_project.dataplane.snapshot_file import write_snapshot_file
from gateway_project.processes import ROOT
from keys.credential import generate
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Answer, CutShort
from tests.scripted_upstream import Peer, Upstream, replying
from tests.test_access_tokens import sealed
from tests.token_makers import (
    AUDIENCE,
    ISSUER,
    claims,
    jwks,
    kid_of,
    part,
    private_key,
    public_jwk,
    shared_token,
    token,
)
from tests.websocket_peers import CLOSE, TEXT, Ended, Socket, agreeing, frame, open_socket
from tests.websocket_peers import ask as handshake
from tests.wires import (
    application_wire,
    entry_wire,
    issuer_wire,
    queue_route_wire,
    route_wire,
    service_wire,
    version_wire,
)

SECRET = "a shared secret of 32 octets or more"


@pytest.fixture(scope="module")
def gate(start_module_plane: Callable[..., DataPlane]) -> DataPlane:
    """A worker that takes tokens of `ISSUER`, whose keys it has been told."""
    plane = start_module_plane(environment={"UPSTREAM_JWE_KEY": part(b"k" * 32).decode(), "UPSTREAM_HS_SECRET": SECRET})
    take_issuer(plane)
    return plane


@pytest.fixture(scope="module")
def upstream(gate: DataPlane) -> Upstream:
    return gate.serve()


@pytest.fixture(autouse=True)
def _nobody_is_asked(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "gate" in request.fixturenames:
        plane = request.getfixturevalue("gate")
        take_issuer(plane)
        plane.feed.answerer = unexpected


def unexpected(name: str, params: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError(f"{name} {params} was asked for")


def wait_for_end(socket: Socket) -> None:
    while True:
        try:
            socket.read()
        except Ended:
            return


def forged(said: dict[str, Any] | None = None) -> bytes:
    """Under the name of the issuer's key, and signed with another."""
    return token(said, key=private_key("RS256", 1))


def rules(**changes: Any) -> dict[str, Any]:
    return {"jwksUrl": f"{ISSUER}/jwks", "audiences": [AUDIENCE], "leewayS": 0, **changes}


def take_issuer(plane: DataPlane, **changes: Any) -> None:
    tell_keys(plane, jwks())
    plane.feed.put("issuer", issuer_wire(issuer=ISSUER, **({"rules": rules()} | changes)))


def tell_keys(plane: DataPlane, document: Any, issuer_id: str = "iss_1") -> None:
    plane.feed.tell({"type": "jwks", "whole": False, "issuers": {issuer_id: document}})


def bearer(sent: bytes) -> str:
    return f"Authorization: Bearer {sent.decode()}"


def ask(
    plane: DataPlane, path: str, sent: bytes | None, *fields: str, key: str | None = None, method: str = "GET"
) -> Answer:
    lines = [bearer(sent)] if sent is not None else []
    return plane.ask(method, f"{path}/x", *lines, *fields, key=key)


def secured(plane: DataPlane, upstream: Upstream, **access: Any) -> str:
    """A service with an access policy, at the same upstream; its path."""
    name = f"p{time.monotonic_ns()}"
    wire = service_wire(id=f"svc_{name}", name=name, default_url=upstream.url)
    plane.feed.put("service", wire | {"policies": {"access": access}})
    return f"/api/v1/{name}"


# --- who -----------------------------------------------------------------------------------------------------------
def test_a_token_opens_what_its_application_may_use(gate: DataPlane, upstream: Upstream) -> None:
    answer = ask(gate, upstream.path, token())
    assert answer.status == 200
    seen = upstream.wait_for()
    assert seen.field("x-gateway-application") == b"app_1"
    assert "authorization" not in seen.names
    line = gate.log_line(answer.field("x-request-id"))
    assert (line["user_id"], line["issuer"], line["application"], line["key_id"]) == ("ada", "login", "web", None)
    assert ask(gate, upstream.path, None, key="").status == 200  # keys go on as before


def test_a_wrong_token_is_401_with_the_challenge_of_bearer_tokens(gate: DataPlane, upstream: Upstream) -> None:
    for sent in (forged(), token(claims(aud="billing")), token(claims(iss="https://evil.example")), b"a.b.c"):
        answer = ask(gate, upstream.path, sent)
        assert (answer.status, answer.code) == (401, "invalid_credentials")
        challenge = answer.field("www-authenticate") or ""
        assert challenge.startswith('Bearer realm="portcullis", error="invalid_token"')
        assert sent.decode()[-20:] not in answer.body.decode()


def test_an_expired_token_says_so(gate: DataPlane, upstream: Upstream) -> None:
    answer = ask(gate, upstream.path, token(claims(exp=int(time.time()) - 1)))
    assert (answer.status, answer.problem["detail"]) == (401, "The token has expired.")


def test_a_token_that_is_remembered_ends_when_it_expires(gate: DataPlane, upstream: Upstream) -> None:
    sent = token(claims(exp=time.time() + 1.5))
    with gate.connect() as client:
        asked = gate.request("GET", f"{upstream.path}/x", bearer(sent), key=None)
        assert client.send(asked).answer().status == 200
        assert client.send(asked).answer().status == 200

        def is_refused() -> bool:
            return client.send(asked).answer().status == 401

        eventually(is_refused, 5, "the end of the token")


def test_each_request_of_a_connection_is_judged_by_its_own_token(gate: DataPlane, upstream: Upstream) -> None:
    good, other, bad = token(), token(claims(sub="bob")), forged()
    with gate.connect() as client:
        statuses = [
            client.send(gate.request("GET", f"{upstream.path}/x", bearer(sent), key=None)).answer().status
            for sent in (good, bad, other, good, good, bad)
        ]
    assert statuses == [200, 401, 200, 200, 200, 401]


def test_an_application_may_be_named_by_a_claim(gate: DataPlane, upstream: Upstream) -> None:
    gate.feed.put("application", application_wire(id="app_mobile", name="mobile"))
    gate.feed.put("application", application_wire(id="app_foreign", name="foreign", tenant="other"))
    take_issuer(gate, application=None, rules=rules(applicationClaim="azp"))
    assert ask(gate, upstream.path, token(claims(azp="mobile"))).status == 200
    assert upstream.requests[-1].field("x-gateway-application") == b"app_mobile"
    assert ask(gate, upstream.path, token(claims(azp="app_mobile"))).status == 200
    for named in ("app_foreign", "foreign", "nobody", None):  # `*` never crosses tenants (rule 26)
        assert ask(gate, upstream.path, token(claims(azp=named))).status == 401


def test_an_application_that_goes_takes_its_tokens_along(gate: DataPlane, upstream: Upstream) -> None:
    gate.feed.put("application", application_wire(id="app_brief", name="brief"))
    take_issuer(gate, application="app_brief")
    sent = token()
    with gate.connect() as client:
        asked = gate.request("GET", f"{upstream.path}/x", bearer(sent), key=None)
        assert client.send(asked).answer().status == 200
        gate.feed.drop("application", "app_brief")
        assert client.send(asked).answer().status == 401


def test_an_issuer_that_goes_takes_its_tokens_along(gate: DataPlane, upstream: Upstream) -> None:
    sent = token()
    assert ask(gate, upstream.path, sent).status == 200
    gate.feed.drop("issuer", "iss_1")
    assert ask(gate, upstream.path, sent).status == 401


def test_the_keys_of_a_former_url_verify_nothing(gate: DataPlane, upstream: Upstream) -> None:
    moves = {"id": "iss_moves", "name": "moves", "issuer": "https://moves.example.com"}
    said = claims(iss=moves["issuer"])
    gate.feed.put("issuer", issuer_wire(**moves, rules=rules()))
    tell_keys(gate, jwks() | {"url": f"{ISSUER}/jwks"}, "iss_moves")
    assert ask(gate, upstream.path, token(said)).status == 200

    def answer(name: str, params: dict[str, Any]) -> dict[str, Any]:
        raise InternalFault("dependency_unavailable", "The issuer is away.", retry_after_s=1)

    gate.feed.answerer = answer
    gate.feed.put("issuer", issuer_wire(**moves, rules=rules(jwksUrl=f"{ISSUER}/moved")))
    assert ask(gate, upstream.path, token(said)).status == 503
    tell_keys(gate, jwks(which=1) | {"url": f"{ISSUER}/moved"}, "iss_moves")
    assert ask(gate, upstream.path, token(said, which=1)).status == 200
    assert ask(gate, upstream.path, token(said)).status != 200
    gate.feed.drop("issuer", "iss_moves")


def test_shared_secrets_and_encrypted_tokens_are_taken_by_reference(gate: DataPlane, upstream: Upstream) -> None:
    by_secret = rules(algorithms=["HS256"], jwksUrl="", secret="secret://env/UPSTREAM_HS_SECRET")
    take_issuer(gate, rules=by_secret)
    assert ask(gate, upstream.path, shared_token(SECRET.encode())).status == 200
    assert ask(gate, upstream.path, shared_token(b"another secret of 32 octets or more")).status == 401
    take_issuer(gate, rules=rules(decryptionKey="secret://env/UPSTREAM_JWE_KEY"))
    assert ask(gate, upstream.path, sealed(token())).status == 200
    assert ask(gate, upstream.path, sealed(forged())).status == 401
    for number, key in enumerate(("secret://env/UPSTREAM_MISSING", "secret://env/UPSTREAM_HS_SECRET")):
        wire = issuer_wire(
            id="iss_0", name="broken", issuer=f"https://broken{number}.example", rules=rules(decryptionKey=key)
        )
        gate.feed.put("issuer", wire)
        take_issuer(gate, rules=rules(decryptionKey="secret://env/UPSTREAM_JWE_KEY"))  # behind it
        assert ask(gate, upstream.path, sealed(token())).status == 200
        assert ask(gate, upstream.path, sealed(token(), key=b"x" * 32)).status == 503, "it may be the broken one's"
    gate.feed.drop("issuer", "iss_0")
    take_issuer(gate, rules=by_secret | {"secret": "secret://env/UPSTREAM_MISSING"})
    assert ask(gate, upstream.path, shared_token(SECRET.encode())).status == 503


# --- headers -------------------------------------------------------------------------------------------------------
def test_claims_go_to_upstreams_and_clients_cannot_send_them(gate: DataPlane, upstream: Upstream) -> None:
    take_issuer(gate, rules=rules(headers=[{"claim": "email", "header": "X-User-Email"}]))
    forged = "X-User-Email: root@example.com"
    assert ask(gate, upstream.path, token(claims(email="ada@example.com")), forged).status == 200
    assert upstream.requests[-1].field("x-user-email") == b"ada@example.com"
    assert ask(gate, upstream.path, token(), forged).status == 200  # the token has no such claim
    assert upstream.requests[-1].field("x-user-email") is None
    assert ask(gate, upstream.path, None, forged, key="").status == 200  # a key speaks for no user
    assert upstream.requests[-1].field("x-user-email") is None


def test_a_token_goes_on_where_the_route_says_so(gate: DataPlane, upstream: Upstream) -> None:
    name = upstream.path.rpartition("/")[2]
    gate.feed.put("route", route_wire("rte_pass", "/api/passes/*", service=name, pass_credentials=True))
    sent = token()
    assert ask(gate, "/api/passes", sent).status == 200
    assert upstream.requests[-1].field("authorization") == b"Bearer " + sent


# --- what routes ask for -------------------------------------------------------------------------------------------
def test_a_service_asks_for_scopes_and_roles(gate: DataPlane, upstream: Upstream) -> None:
    path = secured(gate, upstream, scopes=["orders:write"], roles=["editor"])
    fit = claims(scope="orders:read orders:write", roles=["editor"])
    assert ask(gate, path, token(fit)).status == 200
    answer = ask(gate, path, token(fit | {"scope": "orders:read"}))
    assert (answer.status, answer.code) == (403, "insufficient_scope")
    assert answer.field("www-authenticate") == (
        'Bearer realm="portcullis", error="insufficient_scope", scope="orders:write"'
    )
    answer = ask(gate, path, token(fit | {"roles": ["reader"]}))
    assert (answer.status, answer.code) == (403, "insufficient_role")


def test_the_scopes_of_keys_count(gate: DataPlane, upstream: Upstream) -> None:
    path = secured(gate, upstream, scopes=["orders:write"])
    assert ask(gate, path, None, key=gate.new_key(scopes=["orders:*"])).status == 200
    answer = ask(gate, path, None, key="")
    assert (answer.status, answer.code) == (403, "insufficient_scope")


def test_a_key_a_token_or_both_are_asked_for(gate: DataPlane, upstream: Upstream) -> None:
    wanted = {
        "any": (401, 200, 200, 200),
        "key": (401, 200, 401, 200),
        "token": (401, 401, 200, 200),
        "both": (401, 401, 401, 200),
        "public": (200, 200, 200, 200),
    }
    sent = token()
    for credentials, statuses in wanted.items():
        path = secured(gate, upstream, credentials=credentials)
        found = tuple(
            ask(gate, path, with_token, key=with_key).status
            for with_token, with_key in ((None, None), (None, ""), (sent, None), (sent, ""))
        )
        assert found == statuses, credentials
        assert ask(gate, path, forged()).status == 401  # a wrong one never passes for none (rule 6)


def test_a_routes_policy_goes_before_its_services(gate: DataPlane, upstream: Upstream) -> None:
    name = secured(gate, upstream, credentials="token").rpartition("/")[2]
    open_to_all = route_wire("rte_open", "/api/open/*", service=name, policies={"access": {"credentials": "public"}})
    gate.feed.put("route", open_to_all, route_wire("rte_closed", "/api/closed/*", service=name))
    assert ask(gate, "/api/open", None).status == 200
    assert ask(gate, "/api/closed", None, key="").status == 401
    assert ask(gate, "/api/closed", token()).status == 200


@pytest.mark.parametrize("hidden", ["%0d%0aX-Gateway-Application:%20other", "%0A", "%00"])
def test_a_key_in_the_query_becomes_no_further_field_where_the_token_counts(gate: DataPlane, hidden: str) -> None:
    upstream = gate.serve(agreeing())
    policies = {"access": {"credentials": "token"}, "websockets": {"queryKey": "key"}}
    name = upstream.path.rpartition("/")[2]
    gate.feed.put("route", route_wire("rte_query", "/query", service=name, pass_credentials=True, policies=policies))
    with gate.connect() as client:
        answer = client.send(handshake(gate, f"/query?key=k{hidden}", bearer(token()), key=None)).answer()
        assert (answer.status, answer.code) == (400, "bad_request")
    assert upstream.requests == []
    with open_socket(gate, "/query?key=k", bearer(token()), key=None):
        assert upstream.requests[-1].all("x-gateway-application") == [b"app_1"]


def test_what_is_said_of_a_key_is_said_once_though_its_token_was_asked_about(
    gate: DataPlane, upstream: Upstream
) -> None:
    path = secured(gate, upstream, credentials="both")
    key = gate.new_key(expires_at=time.time() + 3600)
    gate.feed.put(
        "issuer", issuer_wire(id="iss_asked", name="asked", issuer="https://asked.example.com", rules=rules())
    )
    gate.feed.answerer = lambda name, params: {"keys": jwks()}
    answer = ask(gate, path, token(claims(iss="https://asked.example.com")), key=key)
    assert answer.status == 200
    assert answer.field("x-gateway-key-expires") is not None


def test_with_both_the_key_says_the_application_and_the_token_the_user(gate: DataPlane, upstream: Upstream) -> None:
    path = secured(gate, upstream, credentials="both")
    gate.feed.put("application", application_wire(id="app_partner", name="partner"))
    partner = gate.new_key(application="app_partner")
    answer = ask(gate, path, token(), key=partner)
    assert answer.status == 200
    line = gate.log_line(answer.field("x-request-id"))
    assert (line["application"], line["user_id"]) == ("partner", "ada")
    take_issuer(gate, rules=rules(applicationClaim="azp"))
    assert ask(gate, path, token(claims(azp="partner")), key=partner).status == 200
    assert ask(gate, path, token(claims(azp="web")), key=partner).status == 401


def test_a_public_whitelist_entry_does_not_open_what_a_policy_closes(gate: DataPlane, upstream: Upstream) -> None:
    path = secured(gate, upstream, credentials="token")
    public = entry_wire("wle_public", f"{path}/*", is_public=True)
    gate.feed.put("application", application_wire(id="app_public", name="public", entries=[public]))
    assert ask(gate, path, None).status == 401


def test_an_aggregate_asks_for_all_that_its_services_do(gate: DataPlane) -> None:
    upstream = gate.serve(replying(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"))
    names = [secured(gate, upstream, roles=[role]).rpartition("/")[2] for role in ("editor", "auditor")]
    parts = [{"key": name, "service": name, "path": "/x"} for name in names]
    gate.feed.put("route", route_wire("rte_all", "/api/all", service=None, policies={"aggregation": {"parts": parts}}))
    one = gate.ask("GET", "/api/all", bearer(token(claims(roles=["editor"]))), key=None)
    assert (one.status, one.code) == (403, "insufficient_role")
    assert gate.ask("GET", "/api/all", bearer(token(claims(roles=["editor", "auditor"]))), key=None).status == 200


# --- keys of issuers -----------------------------------------------------------------------------------------------
def test_an_unknown_kid_makes_the_agent_ask_the_issuer_once(gate: DataPlane, upstream: Upstream) -> None:
    calls: list[str] = []
    asked = threading.Event()

    def answer(name: str, params: dict[str, Any]) -> dict[str, Any]:
        calls.append(params["issuer"])
        asked.wait(5)
        return {"keys": {"keys": [*jwks(which=2)["keys"], *jwks()["keys"]]}}

    gate.feed.answerer = answer
    gate.feed.put("issuer", issuer_wire(id="iss_2", issuer="https://two.example", rules=rules()))
    tell_keys(gate, jwks(), "iss_2")
    fresh = token(claims(iss="https://two.example"), which=2)
    with ThreadPoolExecutor(5) as clients:
        answers = [clients.submit(ask, gate, upstream.path, fresh) for _ in range(5)]
        eventually(lambda: calls, 5, "the question")
        asked.set()
        assert [each.result().status for each in answers] == [200] * 5
    unknown = token(claims(iss="https://two.example"), header={"kid": "no such key"})
    assert [ask(gate, upstream.path, unknown).status for _ in range(3)] == [401] * 3
    assert calls == ["iss_2"]  # and not again within half a minute


def test_an_issuer_whose_keys_were_never_had_is_no_reason_to_refuse(gate: DataPlane, upstream: Upstream) -> None:
    def away(name: str, params: dict[str, Any]) -> dict[str, Any]:
        raise InternalFault("dependency_unavailable", "The issuer is away.", retry_after_s=1)

    gate.feed.answerer = away
    gate.feed.put("issuer", issuer_wire(id="iss_3", issuer="https://three.example", rules=rules()))
    sent = token(claims(iss="https://three.example"))
    for _ in range(3):
        answer = ask(gate, upstream.path, sent)
        assert (answer.status, answer.code) == (503, "dependency_unavailable")
        assert answer.field("retry-after") == "1"
    tell_keys(gate, jwks(), "iss_3")
    assert ask(gate, upstream.path, sent).status == 200


def test_an_unknown_kid_while_the_issuer_is_away_is_no_reason_to_refuse(gate: DataPlane, upstream: Upstream) -> None:
    def away(name: str, params: dict[str, Any]) -> dict[str, Any]:
        raise InternalFault("dependency_unavailable", "The issuer is away.", retry_after_s=1)

    gate.feed.answerer = away
    gate.feed.put("issuer", issuer_wire(id="iss_4", issuer="https://four.example", rules=rules()))
    tell_keys(gate, jwks(), "iss_4")
    assert ask(gate, upstream.path, token(claims(iss="https://four.example"), which=2)).status == 503
    assert ask(gate, upstream.path, token(claims(iss="https://four.example"))).status == 200  # known keys go on


def test_a_key_that_the_issuer_withdraws_verifies_nothing_any_more(gate: DataPlane, upstream: Upstream) -> None:
    gate.feed.answerer = lambda name, params: {"keys": jwks(which=2)}
    sent = token()
    with gate.connect() as client:
        asked = gate.request("GET", f"{upstream.path}/x", bearer(sent), key=None)
        assert client.send(asked).answer().status == 200
        tell_keys(gate, jwks(which=2))
        assert client.send(asked).answer().status == 401


# --- opaque tokens (RFC 7662) --------------------------------------------------------------------------------------
INTROSPECTION = {
    "url": "https://opaque.example/introspect", "clientId": "gateway", "clientSecret": "secret://env/UPSTREAM_X",
}  # fmt: skip


@pytest.fixture
def opaque(gate: DataPlane) -> Iterator[Callable[..., list[str]]]:
    """Takes an issuer that is asked for its opinion; what it was asked is in the list."""
    asked: list[str] = []

    def take(opinions: dict[str, Any], **policy: Any) -> list[str]:
        def answer(name: str, params: dict[str, Any]) -> dict[str, Any]:
            assert name == "introspect"
            asked.append(params["token"])
            opinion = opinions.get(params["token"])
            if isinstance(opinion, Exception):
                raise opinion
            return {"claims": opinion}

        gate.feed.answerer = answer
        said = {"introspection": INTROSPECTION | policy, "audiences": []}
        gate.feed.put("issuer", issuer_wire(id="iss_o", issuer="https://opaque.example", name="opaque", rules=said))
        return asked

    yield take
    gate.feed.drop("issuer", "iss_o")


def test_an_opaque_token_is_shown_to_its_issuer_once(gate: DataPlane, upstream: Upstream, opaque: Any) -> None:
    asked = opaque({"opaque-1": {"active": True, "sub": "ada", "scope": "orders:read", "exp": int(time.time()) + 60}})
    path = secured(gate, upstream, credentials="token", scopes=["orders:read"])
    assert [ask(gate, path, b"opaque-1").status for _ in range(3)] == [200] * 3
    assert asked == ["opaque-1"]
    assert [ask(gate, path, b"opaque-2").status for _ in range(3)] == [401] * 3
    assert asked == ["opaque-1", "opaque-2"]  # what it does not know is remembered too, for a moment


def test_nobody_is_asked_about_an_empty_credential(gate: DataPlane, upstream: Upstream, opaque: Any) -> None:
    asked = opaque({})
    for credentials in ("any", "key", "token", "both"):
        path = secured(gate, upstream, credentials=credentials)
        for field in ("X-API-Key:", "Authorization: Bearer"):
            assert gate.ask("GET", f"{path}/x", field, key=None).status == 401
    assert asked == []


@pytest.mark.parametrize("sent", ["two words", "a\ttab", "\tbehind-a-tab", "n\xf6n-ascii"])
def test_nobody_is_asked_about_what_is_no_bearer_token(
    gate: DataPlane, upstream: Upstream, opaque: Any, sent: str
) -> None:
    asked = opaque({})
    assert gate.ask("GET", f"{upstream.path}/x", f"Authorization: Bearer {sent}", key=None).status == 401
    assert asked == []


def test_without_caching_each_request_is_asked_about(gate: DataPlane, upstream: Upstream, opaque: Any) -> None:
    asked = opaque({"opaque-3": {"active": True, "sub": "ada"}}, cacheS=0)
    assert [ask(gate, upstream.path, b"opaque-3").status for _ in range(3)] == [200] * 3
    assert asked == ["opaque-3"] * 3


def test_an_issuer_that_does_not_answer_is_503(gate: DataPlane, upstream: Upstream, opaque: Any) -> None:
    opaque({"opaque-4": InternalFault("dependency_unavailable", "The issuer is away.", retry_after_s=1)})
    answer = ask(gate, upstream.path, b"opaque-4")
    assert (answer.status, answer.code) == (503, "dependency_unavailable")


@pytest.fixture
def introspecting(gate: DataPlane, opaque: Any) -> Iterator[Callable[..., list[tuple[str, str]]]]:
    """Takes further issuers, each with a prefix of its tokens and a tenant, that know every token. Who was shown which
    is in the list."""
    ids: list[str] = []

    def take(*others: tuple[str, str]) -> list[tuple[str, str]]:
        opaque({}, cacheS=0)
        shown: list[tuple[str, str]] = []

        def answer(name: str, params: dict[str, Any]) -> dict[str, Any]:
            shown.append((params["issuer"], params["token"]))
            return {"claims": {"active": True, "sub": "ada"}}

        gate.feed.answerer = answer
        for prefix, tenant in others:
            ids.append(f"iss_{len(ids)}_of_{tenant}")
            said = {"introspection": INTROSPECTION | {"cacheS": 0, "tokenPrefix": prefix}, "audiences": []}
            wire = issuer_wire(id=ids[-1], name=ids[-1], issuer=f"https://{ids[-1]}.example", tenant=tenant, rules=said)
            gate.feed.put("issuer", wire)
        return shown

    yield take
    gate.feed.drop("issuer", *ids)


def test_an_opaque_token_is_shown_to_no_issuer_but_the_one_whose_prefix_it_has(
    gate: DataPlane, upstream: Upstream, introspecting: Any
) -> None:
    shown = introspecting(("at_", "default"), ("at_live_", "default"))
    for sent in (b"plain", b"at_test", b"at_live_x"):
        assert ask(gate, upstream.path, sent).status == 200
    assert shown == [("iss_o", "plain"), ("iss_0_of_default", "at_test"), ("iss_1_of_default", "at_live_x")]


def test_an_opaque_token_that_may_be_two_issuers_is_shown_to_neither(
    gate: DataPlane, upstream: Upstream, introspecting: Any
) -> None:
    shown = introspecting(("", "default"))
    assert ask(gate, upstream.path, b"whose").code == "invalid_credentials"
    assert shown == []


def test_an_opaque_token_is_shown_to_no_issuer_of_another_tenant(
    gate: DataPlane, upstream: Upstream, introspecting: Any
) -> None:
    shown = introspecting(("", "acme"), ("at_", "acme"))
    for sent in (b"plain", b"at_test"):
        assert ask(gate, upstream.path, sent).status == 200
    assert shown == [("iss_o", "plain"), ("iss_o", "at_test")]


def test_no_address_makes_an_issuer_look_at_many_tokens_at_once(
    gate: DataPlane, upstream: Upstream, opaque: Any
) -> None:
    opaque({})
    may_answer, asked = threading.Event(), gate.feed.answerer

    def answer(name: str, params: dict[str, Any]) -> dict[str, Any]:
        assert may_answer.wait(20)
        return asked(name, params)

    gate.feed.answerer = answer
    with ExitStack() as stack:
        clients = [stack.enter_context(gate.connect("127.0.0.9")) for _ in range(103)]
        for number, client in enumerate(clients):
            client.send(gate.request("GET", f"{upstream.path}/x", f"Authorization: Bearer flood-{number}", key=None))
        busy = [client.answer() for client in clients[100:]]
        assert {(answer.status, answer.code) for answer in busy} == {(503, "overloaded")}
        may_answer.set()
        assert [client.answer().status for client in clients[:100]] == [401] * 100
    assert (
        gate.ask("GET", f"{upstream.path}/x", "Authorization: Bearer later", source="127.0.0.9", key=None).status == 401
    )


def test_keys_are_never_shown_to_an_issuer(gate: DataPlane, upstream: Upstream, opaque: Any) -> None:
    asked = opaque({})
    assert ask(gate, upstream.path, gate.key.encode()).status == 200
    wrong = gate.key[:-1] + ("y" if gate.key.endswith("x") else "x")
    assert ask(gate, upstream.path, wrong.encode()).status == 401
    for credentials in ("token", "both"):
        path = secured(gate, upstream, credentials=credentials)
        for field, bearer in ((gate.key, None), (None, gate.key), (gate.key, gate.key)):
            assert ask(gate, path, bearer.encode() if bearer is not None else None, key=field).status == 401
    revoked = generate("of_a_former_prefix_").key
    assert ask(gate, upstream.path, revoked.encode()).status == 401
    assert not asked


# --- long connections ----------------------------------------------------------------------------------------------
def test_a_websocket_is_opened_by_a_token_and_closed_when_it_expires(gate: DataPlane) -> None:
    upstream = gate.serve(agreeing())
    sent = token(claims(exp=time.time() + 3)).decode()
    fields = ("Authorization: Bearer ", "Sec-WebSocket-Protocol: portcullis, portcullis.token.")
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(open_socket(gate, f"{upstream.path}/ws", field + sent, key=None)) for field in fields
        ]
        assert sent not in str(upstream.requests)
        for socket in sockets:
            wait_for_end(socket)


def test_a_websocket_ends_within_a_second_of_its_sessions_revocation(gate: DataPlane) -> None:
    upstream = gate.serve(agreeing())
    gate.feed.put("issuer", own_issuer(rules=rules()))
    tell_keys(gate, jwks(), "iss_own")
    gate.feed.tell({"type": "revocations", "number": 1, "whole": True, "rows": []})
    sent = token(claims(iss="https://own.example", sid="s1"))
    with open_socket(gate, f"{upstream.path}/ws", bearer(sent), key=None) as socket:
        rows = [["session", "s1", 0, time.time() + 900]]
        began = time.monotonic()
        gate.feed.tell({"type": "revocations", "number": 2, "whole": False, "rows": rows})
        wait_for_end(socket)
        assert time.monotonic() - began < 5
    assert gate.ask("GET", f"{upstream.path}/x", bearer(sent), key=None).status == 401


def wait_for_revocation(socket: Socket) -> None:
    while (got := socket.read()).opcode != CLOSE:
        pass
    assert got.code == 1008  # what it was opened with is revoked


def is_open(socket: Socket) -> bool:
    try:
        socket.send(frame(TEXT, b"still there?"))
        return socket.read().payload == b"still there?"
    except (Ended, OSError, AssertionError):
        return False


def own_issuer(**changes: Any) -> dict[str, Any]:
    return issuer_wire(id="iss_own", issuer="https://own.example", name="own", own=True, **changes)


CHANGES: dict[str, Callable[[DataPlane], None]] = {
    "issuer of another application": lambda plane: take_issuer(plane, application="app_2"),
    "issuer of no application": lambda plane: take_issuer(plane, application=None),
    "issuer of another tenant": lambda plane: take_issuer(plane, tenant="acme"),
    "another audience": lambda plane: take_issuer(plane, rules=rules(audiences=["billing"])),
    "another algorithm": lambda plane: take_issuer(plane, rules=rules(algorithms=["PS256"])),
    "another type": lambda plane: take_issuer(plane, rules=rules(typ="at+jwt")),
    "too old now": lambda plane: take_issuer(plane, rules=rules(maxAgeS=1)),
    "the role is another's": lambda plane: take_issuer(plane, rules=rules(roleMap={"boss": "clerk"})),
    "asked for its opinion": lambda plane: take_issuer(plane, rules={"introspection": INTROSPECTION}),
    "key withdrawn": lambda plane: tell_keys(plane, jwks(which=1)),
    "another key under the name": lambda plane: tell_keys(
        plane, {"keys": [public_jwk(which=1, kid=kid_of())]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_token_opened_ends_when_it_would_not_open_it_any_more(gate: DataPlane, change: str) -> None:
    gate.feed.put("application", application_wire(id="app_2", name="other"))
    events = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n:\r\n"
    sent = token(claims(roles=["clerk"], iat=int(time.time()) - 60))

    def stream(peer: Peer) -> None:
        peer.read_head()
        peer.send(events)
        peer.wait_for_end()

    sockets, streams = (secured(gate, gate.serve(script), roles=["clerk"]) for script in (agreeing(), stream))
    with open_socket(gate, f"{sockets}/ws", bearer(sent), key=None) as socket, gate.connect() as client:
        client.send(gate.request("GET", f"{streams}/events", bearer(sent), key=None))
        assert client.exactly(12) == b"HTTP/1.1 200"
        assert is_open(socket)
        CHANGES[change](gate)
        wait_for_revocation(socket)
        with pytest.raises(CutShort):
            client.exactly(1_000_000)


def test_what_a_token_opened_goes_on_as_long_as_it_would_open_it(gate: DataPlane) -> None:
    """As keys rotate, and as rules change that it meets; also while the keys of a new address cannot be had yet."""
    upstream = gate.serve(agreeing())
    tell_keys(gate, {"keys": [public_jwk(), public_jwk(which=1)]})
    with ExitStack() as stack:
        former, later = (
            stack.enter_context(open_socket(gate, f"{upstream.path}/ws", bearer(sent), key=None))
            for sent in (token(), token(which=1))
        )
        gate.feed.put("application", application_wire(id="app_3", name="third"))
        take_issuer(gate, rules=rules(jwksUrl=f"{ISSUER}/elsewhere", leewayS=60, audiences=["billing", AUDIENCE]))
        tell_keys(gate, jwks(which=1) | {"url": f"{ISSUER}/elsewhere"})
        wait_for_revocation(former)
        assert is_open(later)


def test_what_one_of_our_own_tokens_opened_ends_when_its_signing_key_is_revoked(gate: DataPlane) -> None:
    upstream = gate.serve(agreeing())
    keys = [public_jwk(), public_jwk(which=1)]
    gate.feed.put("issuer", own_issuer(rules={"jwks": {"keys": keys}}))
    gate.feed.tell({"type": "revocations", "number": 1, "whole": True, "rows": []})
    with ExitStack() as stack:
        revoked, other = (
            stack.enter_context(open_socket(gate, f"{upstream.path}/ws", bearer(sent), key=None))
            for sent in (token(claims(iss="https://own.example"), which=which) for which in (0, 1))
        )
        gate.feed.put("issuer", own_issuer(rules={"jwks": {"keys": keys[1:]}}))
        wait_for_revocation(revoked)
        assert is_open(other)


def test_beside_a_key_the_issuer_may_go_to_another_application(gate: DataPlane) -> None:
    upstream = gate.serve(agreeing())
    path = secured(gate, upstream, credentials="both")
    with ExitStack() as stack:
        both = stack.enter_context(open_socket(gate, f"{path}/ws", bearer(token())))
        alone = stack.enter_context(open_socket(gate, f"{upstream.path}/ws", bearer(token()), key=None))
        gate.feed.put("application", application_wire(id="app_2", name="other"))
        take_issuer(gate, application="app_2")
        wait_for_revocation(alone)
        assert is_open(both)


@pytest.mark.parametrize(
    "later", [None, {"sub": "ada", "roles": ["clerk"]}, {"sub": "bob", "roles": ["boss"]}, {"sub": "ada", "exp": 1}]
)
def test_an_issuer_is_asked_again_about_an_opaque_token_while_what_it_opened_is_open(
    gate: DataPlane, opaque: Any, later: dict[str, Any] | None
) -> None:
    opinions: dict[str, Any] = {"opaque-ws": {"sub": "ada", "roles": ["boss"]}}
    asked = opaque(opinions, cacheS=1)
    path = secured(gate, gate.serve(agreeing()), roles=["boss"])
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(open_socket(gate, f"{path}/ws", bearer(b"opaque-ws"), key=None)) for _ in range(8)
        ]
        opinions["opaque-ws"] = later
        for socket in sockets:
            wait_for_revocation(socket)
    assert 2 <= len(asked) < len(sockets)  # once for all of them, and again when they took long to come


def test_an_issuer_that_is_away_ends_nothing_that_its_opaque_tokens_opened(gate: DataPlane, opaque: Any) -> None:
    opinions: dict[str, Any] = {name: {"sub": "ada"} for name in ("opaque-a", "opaque-b")}
    asked = opaque(opinions, cacheS=1)
    path = gate.serve(agreeing()).path
    with ExitStack() as stack:
        left, revoked = (
            stack.enter_context(open_socket(gate, f"{path}/ws", bearer(sent.encode()), key=None)) for sent in opinions
        )
        away = InternalFault("dependency_unavailable", "The issuer is away.", retry_after_s=1)
        opinions |= dict.fromkeys(opinions, away)
        eventually(lambda: len(asked) >= 4, 10, "the next questions")
        assert is_open(left) and is_open(revoked)
        opinions |= {"opaque-a": {"sub": "ada"}, "opaque-b": None}
        wait_for_revocation(revoked)
        assert is_open(left)


# --- what is kept apart --------------------------------------------------------------------------------------------
def test_stored_answers_of_a_user_are_nobody_elses(gate: DataPlane) -> None:
    stored = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok"
    upstream = gate.serve(replying(stored), policies={"caching": {}})
    ada, bob = token(), token(claims(sub="bob"))
    for sent, said in ((ada, "stored"), (bob, "stored"), (ada, "hit"), (bob, "hit")):
        assert said in (ask(gate, upstream.path, sent).field("cache-status") or "")
    assert "hit" not in (ask(gate, upstream.path, None, key="").field("cache-status") or "")


def test_stored_answers_of_a_user_are_for_what_the_token_says_of_them(gate: DataPlane) -> None:
    """Who has other roles today gets nothing that was for those of yesterday."""
    take_issuer(gate, rules=rules(headers=[{"claim": "role", "header": "X-Role"}]))
    stored = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok"
    upstream = gate.serve(replying(stored), policies={"caching": {}})
    admin, guest = token(claims(role="admin")), token(claims(role="guest"))
    for sent, said in ((admin, "stored"), (guest, "stored"), (admin, "hit"), (guest, "hit")):
        assert said in (ask(gate, upstream.path, sent).field("cache-status") or "")


def test_nobody_gets_stored_answers_by_a_name_that_looks_like_what_is_said_of_another(gate: DataPlane) -> None:
    take_issuer(gate, rules=rules(headers=[{"claim": "role", "header": "X-Role"}]))
    stored = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok"
    upstream = gate.serve(replying(stored), policies={"caching": {}})
    described = sha256(b"x-role: admin\r\n").hexdigest()
    for sent in (token(claims(sub="ann", role="admin")), token(claims(sub=f"ann {described}"))):
        assert "stored" in (ask(gate, upstream.path, sent).field("cache-status") or "")


def test_answers_that_vary_by_a_claim_are_kept_apart(gate: DataPlane) -> None:
    take_issuer(gate, rules=rules(headers=[{"claim": "sub", "header": "X-User"}]))
    stored = b"HTTP/1.1 200 OK\r\nCache-Control: public, max-age=60\r\nVary: X-User\r\nContent-Length: 2\r\n\r\nok"
    upstream = gate.serve(replying(stored), policies={"caching": {}})
    ada, bob = token(), token(claims(sub="bob"))
    for sent, said in ((ada, "stored"), (bob, "stored"), (ada, "hit"), (bob, "hit")):
        assert said in (ask(gate, upstream.path, sent).field("cache-status") or "")


def test_a_suspended_applications_key_learns_nothing_of_tasks(gate: DataPlane) -> None:
    gate.feed.put("application", application_wire(id="app_asks", name="asks"))
    key = gate.new_key(application="app_asks")
    gate.feed.answerer = lambda name, params: {"task_id": "task_1", "status": "queued"}
    assert gate.ask("GET", "/api/v1/tasks/task_1", key=key).status == 200
    gate.feed.drop("application", "app_asks")
    assert gate.ask("GET", "/api/v1/tasks/task_1", key=key).code == "invalid_credentials"


def test_a_task_is_its_users(gate: DataPlane) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def answer(name: str, params: dict[str, Any]) -> dict[str, Any]:
        calls.append((name, params))
        return {"task_id": "task_1"} if name == "accept" else {"task_id": "task_1", "status": "queued"}

    gate.feed.answerer = answer
    gate.feed.put("queue_route", queue_route_wire())
    gate.feed.put("route", route_wire("rte_queue", "/api/mail", service=None, queue_route="que_1", methods=["POST"]))
    sent = bearer(token(claims(sub="x" * 200)))
    of_json = "Content-Type: application/json"
    assert gate.ask("POST", "/api/mail", sent, of_json, key=None, body=b"{}").status == 202
    assert gate.ask("GET", "/api/v1/tasks/task_1", sent, key=None).status == 200
    (_, accepted), (_, status) = calls
    assert accepted["application"] == status["application"] == "app_1"
    assert accepted["user"] == status["user"]
    assert accepted["user"].startswith("login:x")
    assert len(accepted["user"]) <= 100


def test_the_split_of_a_user_stays_where_it_is(gate: DataPlane) -> None:
    upstream, other = Upstream(), Upstream()
    versions = [version_wire("v1", 50, upstream.url), version_wire("v2", 50, other.url)]
    gate.serve(upstream=upstream, versions=versions)
    gate.serve(upstream=other)
    path = f"/api/v1/s{int(other.path.rpartition('s')[2]) - 1}"
    for number in range(6):
        before = len(upstream.requests), len(other.requests)
        for _ in range(4):
            assert ask(gate, path, token(claims(sub=f"u{number}", jti=str(time.monotonic_ns())))).status == 200
        counts = len(upstream.requests) - before[0], len(other.requests) - before[1]
        assert sorted(counts) == [0, 4]
    assert upstream.requests
    assert other.requests


# --- the cost ------------------------------------------------------------------------------------------------------
def test_a_worker_without_issuers_loads_no_cryptography_for_tokens() -> None:
    code = "import sys, gateway_project.dataplane.worker; print([m for m in sys.modules if m.startswith('joserfc')])"
    environment = {"PATH": os.environ["PATH"]}
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_the_metrics_say_how_tokens_fared(gate: DataPlane, upstream: Upstream) -> None:
    ask(gate, upstream.path, token(claims(jti="metrics")))
    ask(gate, upstream.path, forged(claims(jti="metrics")))

    def statuses() -> set[str]:
        reports = [each for each in gate.feed.heard if each["type"] == "metrics"]
        rows = reports[-1]["counters"] if reports else []
        return {labels["status"] for name, labels, _ in rows if name == "api_gateway_jwt_validations_total"}

    eventually(lambda: {"valid", "invalid"} <= statuses() or None, 30, "the counts of validations")


def test_wrong_tokens_are_charged_to_their_address(start_plane: Callable[..., DataPlane]) -> None:
    plane = start_plane(auth_failures_per_minute=5)
    take_issuer(plane)
    upstream = plane.serve()
    good = token()
    assert ask(plane, upstream.path, good).status == 200
    statuses = [ask(plane, upstream.path, forged(claims(jti=str(n)))).status for n in range(10)]
    assert statuses[:5] == [401] * 5
    assert statuses[-1] == 429
    assert ask(plane, upstream.path, good).status == 200  # who is known already is not shut out


def test_a_shared_secret_that_is_rotated_counts_at_once(start_plane: Callable[..., DataPlane], tmp_path: Any) -> None:
    file = tmp_path / "tokens"
    file.write_text(SECRET)
    plane = start_plane(secrets_dir=str(tmp_path))
    upstream = plane.serve()
    by_file = rules(algorithms=["HS256"], jwksUrl="", secret="secret://file/tokens")
    plane.feed.put("issuer", issuer_wire(issuer=ISSUER, rules=by_file))
    former, other = shared_token(SECRET.encode()), "another secret of 32 octets or more"
    with plane.connect() as client:
        asked = plane.request("GET", f"{upstream.path}/x", bearer(former), key=None)
        assert client.send(asked).answer().status == 200
        file.write_text(other)
        eventually(lambda: client.send(asked).answer().status == 401, 10, "the end of what the former secret signed")
    assert ask(plane, upstream.path, shared_token(other.encode())).status == 200


def test_a_worker_that_starts_without_an_agent_knows_the_keys_that_were_kept(
    start_plane: Callable[..., DataPlane], tmp_path_factory: pytest.TempPathFactory
) -> None:
    plane = start_plane()
    take_issuer(plane)
    upstream = plane.serve()
    frames = [encode(message) for message in plane.feed.full_load()]
    directory = tmp_path_factory.mktemp("alone")
    write_snapshot_file(directory / "snapshot.bin", iter(frames))
    (directory / "issuer-keys.json").write_text(json.dumps({"iss_1": {"url": f"{ISSUER}/jwks", "keys": jwks()}}))
    alone = DataPlane(directory, with_agent=False)
    try:
        alone.start()
        assert ask(alone, upstream.path, token()).status == 200
        assert ask(alone, upstream.path, forged()).status == 401
    finally:
        alone.close()
