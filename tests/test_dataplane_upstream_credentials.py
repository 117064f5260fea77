"""The gateway shows a service's targets who it is (R25): fields made of secrets that only the worker's host knows."""

import json
from base64 import b64encode
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from core.faults import InternalFault
from routing.records import ServiceRecord
from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.scripted_upstream import Upstream, replying
from tests.wires import service_wire

HUSH = "hush-7f3a"


def field(header: str, value: str) -> dict[str, str]:
    return {"header": header, "value": value}


BEARER = field("Authorization", "Bearer {secret://env/UPSTREAM_TOKEN}")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def plane(start_module_plane: Callable[..., DataPlane], secrets: Path) -> DataPlane:
    environment = {"UPSTREAM_TOKEN": HUSH, "UPSTREAM_BROKEN": "two\nlines", "SECRET_KEY": "never"}
    return start_module_plane(environment=environment, secrets_dir=str(secrets))


def latest(plane: DataPlane, kind: str) -> Any:
    """The worker's latest message of the kind to its agent."""
    return next(message for message in reversed(plane.feed.heard) if message["type"] == kind)


def test_a_field_is_put_together_from_text_and_secrets(plane: DataPlane, secrets: Path) -> None:
    (secrets / "user").write_text("gate\n")
    credentials = [BEARER, field("X-Account", "{secret://file/user}:{secret://env/UPSTREAM_TOKEN}@eu")]
    upstream = plane.serve(upstream_credentials=credentials)
    assert plane.ask("GET", f"{upstream.path}/x").status == 200
    assert upstream.requests[-1].field("authorization") == f"Bearer {HUSH}".encode()
    assert upstream.requests[-1].field("x-account") == f"gate:{HUSH}@eu".encode()


@pytest.mark.parametrize(
    "client", ["Authorization: Basic Zm9yZ2Vk", "authorization: Bearer km_forged", "AUTHORIZATION: Negotiate forged"]
)
def test_what_the_client_sends_under_that_name_is_dropped(plane: DataPlane, client: str) -> None:
    upstream = plane.serve(upstream_credentials=[BEARER, field("X-Account", "{secret://env/UPSTREAM_TOKEN}")])
    assert plane.ask("GET", f"{upstream.path}/x", client, "x-ACCOUNT: forged", "X-Account: twice").status == 200
    seen = upstream.requests[-1]
    assert seen.field("authorization") == f"Bearer {HUSH}".encode()
    assert seen.field("x-account") == HUSH.encode()


def test_connection_cannot_take_the_field_away(plane: DataPlane) -> None:
    upstream = plane.serve(upstream_credentials=[BEARER])
    assert plane.ask("GET", f"{upstream.path}/x", "Connection: authorization, x-other", "X-Other: 1").status == 200
    assert upstream.requests[-1].field("authorization") == f"Bearer {HUSH}".encode()
    assert upstream.requests[-1].field("x-other") is None


def test_a_cookie_of_the_gateways_own_replaces_the_clients(plane: DataPlane) -> None:
    upstream = plane.serve(upstream_credentials=[field("Cookie", "session={secret://env/UPSTREAM_TOKEN}")])
    assert plane.ask("GET", f"{upstream.path}/x", "Cookie: session=forged; other=1").status == 200
    assert upstream.requests[-1].field("cookie") == f"session={HUSH}".encode()


def test_other_services_and_fallbacks_get_none_of_it(plane: DataPlane) -> None:
    fallback, other = plane.serve(), plane.serve()
    closed = Upstream()
    closed.close()
    guarded = plane.serve(upstream=closed, upstream_credentials=[BEARER], fallback_url=fallback.url)
    assert plane.ask("GET", f"{guarded.path}/x", "Authorization: Basic Zm9yZ2Vk").status == 200
    assert plane.ask("GET", f"{other.path}/x").status == 200
    for upstream in (fallback, other):
        assert "authorization" not in upstream.requests[-1].names


def test_a_rotated_file_counts_without_a_restart(plane: DataPlane, secrets: Path) -> None:
    (secrets / "token").write_text("first")
    upstream = plane.serve(upstream_credentials=[field("X-Token", "{secret://file/token}")])
    plane.ask("GET", f"{upstream.path}/x")
    assert upstream.requests[-1].field("x-token") == b"first"
    (secrets / "token.new").write_text("second")
    (secrets / "token.new").replace(secrets / "token")

    def is_rotated() -> bool:
        plane.ask("GET", f"{upstream.path}/x")
        return upstream.requests[-1].field("x-token") == b"second"

    eventually(is_rotated, what="the second token")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("secret://env/UPSTREAM_MISSING", "the environment variable is not set"),
        ("secret://file/missing", "the file cannot be read (No such file or directory)"),
        ("secret://env/UPSTREAM_BROKEN", "it holds a control character, which no header field can carry"),
    ],
)
def test_a_reference_that_stands_for_nothing_sendable_is_503_and_nothing_is_sent(
    plane: DataPlane, reference: str, reason: str
) -> None:
    upstream = plane.serve(upstream_credentials=[field("X-Token", f"{{{reference}}}")])
    answer = plane.ask("GET", f"{upstream.path}/x")
    assert (answer.status, answer.code) == (503, "dependency_unavailable")
    assert answer.problem["detail"] == "A secret that the gateway needs for this is not available."
    assert "UPSTREAM_" not in str(answer) and "secret:" not in str(answer)
    told = f"{reference} cannot be resolved: {reason}"
    eventually(lambda: told in plane.output(), what="the line in the log")
    plane.ask("GET", f"{upstream.path}/x")
    assert plane.output().count(told) == 1, "not for every request"
    assert int(answer.field("retry-after") or 0) > 0
    assert "lines" not in answer.body.decode()
    assert not upstream.connections


def test_a_stored_answer_may_stand_in_while_a_secret_is_missing(plane: DataPlane, secrets: Path) -> None:
    (secrets / "fleeting").write_text("here")
    fresh = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=0, stale-if-error=600\r\nContent-Length: 2\r\n\r\nok"
    upstream = plane.serve(
        replying(fresh),
        upstream_credentials=[field("X-Token", "{secret://file/fleeting}")],
        policies={"caching": {}},
    )
    assert plane.ask("GET", f"{upstream.path}/x").body == b"ok"
    (secrets / "fleeting").unlink()

    others = count()

    def is_lost() -> bool:
        return plane.ask("GET", f"{upstream.path}/other{next(others)}").status == 503

    eventually(is_lost, what="the loss of the secret")
    asked = len(upstream.requests)
    assert plane.ask("GET", f"{upstream.path}/x").body == b"ok"
    assert len(upstream.requests) == asked


def test_a_missing_secret_is_told_before_anybody_asks_and_is_no_problem_once_it_is_there(
    plane: DataPlane, secrets: Path
) -> None:
    plane.serve(name="late", upstream_credentials=[field("X-Token", "{secret://file/late}")])
    reference = "secret://file/late"

    def problems() -> list[Any]:
        return [each for each in latest(plane, "ack")["problems"] if each["id"] == reference]

    def unresolved() -> float:
        gauges = {name: value for name, _, value in latest(plane, "metrics")["gauges"]}
        return float(gauges["portcullis_unresolved_secrets"])

    error = f"{reference} cannot be resolved: the file cannot be read (No such file or directory)"
    told = eventually(problems, what="the problem")
    assert told == [{"kind": "secret", "id": reference, "name": "late", "error": error}]
    eventually(lambda: unresolved() > 0, what="the gauge")
    (secrets / "late").write_text("here")
    eventually(lambda: not problems(), what="no problem any more")


def test_no_secret_stands_in_logs_or_in_what_the_agent_hears(plane: DataPlane) -> None:
    upstream = plane.serve(upstream_credentials=[BEARER])
    answer = plane.ask("GET", f"{upstream.path}/x")
    plane.log_line(answer.field("x-request-id"))
    said = plane.output() + (plane.directory / "access.log").read_text() + json.dumps(plane.feed.heard)
    assert HUSH not in said
    assert HUSH not in str(answer)


@pytest.mark.parametrize(
    ("credential", "sentence"),
    [
        (field("Host", "{secret://env/UPSTREAM_A}"), "the gateway sets Host itself"),
        (field("transfer-encoding", "{secret://env/UPSTREAM_A}"), "the gateway sets transfer-encoding itself"),
        (field("X-Forwarded-For", "{secret://env/UPSTREAM_A}"), "the gateway sets X-Forwarded-For itself"),
        (field("X-Gateway-Application", "{secret://env/UPSTREAM_A}"), "the gateway sets X-Gateway-Application"),
        (field("X_Token", "{secret://env/UPSTREAM_A}"), "could send the field too"),
        (field("X-Token", "plain"), "this names no secret"),
        (field("X-Token", "Bearer {secret://env/SECRET_KEY}"), "begins with UPSTREAM_"),
        (field("X-Token", "{secret://file/../a}"), "below SECRETS_DIR"),
        (field("X-Token", "{secret://env/UPSTREAM_A} {more}"), "a brace"),
        (field("X-Token", "a\r\nb: {secret://env/UPSTREAM_A}"), "printable ASCII"),
    ],
)
def test_what_cannot_be_sent_does_not_compile(credential: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ServiceRecord.from_wire(service_wire(upstream_credentials=[credential]))


def test_two_fields_of_one_name_do_not_compile() -> None:
    twice = [field("X-Token", "{secret://env/UPSTREAM_A}"), field("x-token", "{secret://env/UPSTREAM_B}")]
    with pytest.raises(ValueError, match="two upstream credentials are called x-token"):
        ServiceRecord.from_wire(service_wire(upstream_credentials=twice))


# --- secrets managers (A21) ------------------------------------------------------------------------------------------
def test_the_agent_is_asked_for_a_managers_secret_and_no_request_waits_for_it(
    start_plane: Callable[..., DataPlane],
) -> None:
    plane = start_plane()
    known: dict[str, str] = {}

    def answer(name: str, params: dict[str, Any]) -> dict[str, Any]:
        assert name == "secret"
        if params["reference"] not in known:
            raise InternalFault("dependency_unavailable", "HashiCorp Vault says Forbidden")
        return {"value": b64encode(known[params["reference"]].encode()).decode()}

    plane.feed.answerer = answer
    reference = "secret://vault/kv/orders#token"
    upstream = plane.serve(upstream_credentials=[field("Authorization", f"Bearer {{{reference}}}")])
    told = f"{reference} cannot be resolved: HashiCorp Vault says Forbidden"
    plane.ask("GET", f"{upstream.path}/x")
    eventually(lambda: told in plane.output(), 10, "the agent's reason")
    answer_before = plane.ask("GET", f"{upstream.path}/x")
    assert (answer_before.status, answer_before.code) == (503, "dependency_unavailable")
    assert "vault" not in str(answer_before).lower()
    eventually(lambda: latest(plane, "ack")["problems"], 10, "the problem")
    known[reference] = HUSH
    eventually(lambda: plane.ask("GET", f"{upstream.path}/x").status == 200, 10, "the secret")
    assert upstream.requests[-1].field("authorization") == f"Bearer {HUSH}".encode()
    eventually(lambda: not latest(plane, "ack")["problems"], 10, "no problem")
    plane.feed.stop()
    assert plane.ask("GET", f"{upstream.path}/x").status == 200  # the agent's absence takes nothing away
