"""Which version answers, and what a deprecated or retired one says, through a running worker (rules 2 and 4)."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from tests.dataplane import DataPlane, serve
from tests.gateway_process import eventually
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream, replying
from tests.wires import Wire, application_wire, route_wire, version_wire

SUNSET = 1_830_297_600  # Sat, 01 Jan 2028 00:00:00 GMT
LINK = "https://docs.example.com/v2"


def saying(text: str, status: int = 200) -> Upstream:
    body = text.encode()
    return Upstream(replying(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)))


class Versions:
    """A service with the versions v1, v2 and v3, whose upstreams answer with the version's name."""

    def __init__(self, plane: DataPlane, *weights: int, **changes: Wire) -> None:
        self.plane = plane
        self.upstreams = [saying(f"v{number}") for number in (1, 2, 3)]
        wires = []
        for number, upstream in enumerate(self.upstreams, 1):
            weight = weights[number - 1] if weights else 0
            wires.append(version_wire(f"v{number}", weight, upstream.url) | changes.get(f"v{number}", {}))
        first, *others = self.upstreams
        plane.serve(upstream=first, versions=wires, default_url="", current_version="v2" if weights else "v1")
        for each in others:
            plane._upstreams.append(each)
        self.name = first.path.rpartition("/")[2]

    def ask(self, *fields: str, prefix: str = "v1", method: str = "GET", key: str | None = "") -> Answer:
        return self.plane.ask(method, f"/api/{prefix}/{self.name}/x", *fields, key=key)


@pytest.fixture(scope="module")
def versions(plane: DataPlane) -> Versions:
    return Versions(plane)


# --- rule 4: who asks for a version gets it ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prefix", "fields", "answered"),
    [
        ("v1", (), b"v1"),  # the current one: /api/v1/ names none
        ("v1", ("X-API-Version: v3",), b"v3"),
        ("v1", ("X-API-Version: 3",), b"v3"),
        ("v1", ("X-API-Version: 3", "X-API-Version: v3"), b"v3"),
        ("v1", ("X-API-Version: ",), b"v1"),
        ("v1", ("Accept: application/json;version=2",), b"v2"),
        ("v1", ('Accept: text/html, application/json; Version="2";q=0.3',), b"v2"),
        ("v1", ("Accept: */*",), b"v1"),
        ("v2", (), b"v2"),
        ("v3", (), b"v3"),
        ("v2", ("X-API-Version: 2", "Accept: a/b;version=v2"), b"v2"),
    ],
)
def test_the_version_that_header_accept_or_path_name_answers(
    versions: Versions, prefix: str, fields: tuple[str, ...], answered: bytes
) -> None:
    answer = versions.ask(*fields, prefix=prefix)
    assert (answer.status, answer.body) == (200, answered)


@pytest.mark.parametrize(
    ("prefix", "fields"),
    [
        ("v2", ("X-API-Version: v3",)),
        ("v2", ("X-API-Version: v1",)),
        ("v2", ("Accept: a/b;version=3",)),
        ("v1", ("X-API-Version: 2", "Accept: a/b;version=3")),
        ("v1", ("X-API-Version: 2", "X-API-Version: 3")),
        ("v1", ("X-API-Version: 2, 3",)),
        ("v1", ("Accept: a/b;version=1, a/b;version=2",)),
    ],
)
def test_names_that_contradict_each_other_are_refused(versions: Versions, prefix: str, fields: tuple[str, ...]) -> None:
    answer = versions.ask(*fields, prefix=prefix)
    assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize("prefix", ["v1", "v9"])
def test_a_version_that_does_not_exist_is_not_found(versions: Versions, prefix: str) -> None:
    answer = versions.ask(*(("X-API-Version: v9",) if prefix == "v1" else ()), prefix=prefix)
    assert (answer.status, answer.code) == (404, "unknown_version")


def test_a_version_that_the_application_may_not_use_is_refused_and_never_chosen(plane: DataPlane) -> None:
    versions = Versions(plane, 50, 50, 0)
    plane.feed.put("application", application_wire(id="app_old", name="old", versions=["v1"]))
    key = plane.new_key(application="app_old")
    answer = versions.ask("X-API-Version: v2", key=key)
    assert (answer.status, answer.code) == (403, "version_not_allowed")
    assert {versions.ask(key=key).body for _ in range(20)} == {b"v1"}


def test_weights_share_the_clients_and_each_stays_where_it_is(plane: DataPlane) -> None:
    versions = Versions(plane, 50, 50, 0)
    keys = [plane.new_key() for _ in range(40)]
    first = [versions.ask(key=key).body for key in keys]
    assert set(Counter(first)) == {b"v1", b"v2"}
    assert [versions.ask(key=key).body for key in keys] == first


def test_a_route_that_pins_a_version_decides_whatever_the_request_names(plane: DataPlane) -> None:
    versions = Versions(plane)
    path = f"/api/pinned/{versions.name}"
    plane.feed.put("route", route_wire(f"rte_{versions.name}", path, service=versions.name, version="v3"))
    assert plane.ask("GET", path, "X-API-Version: 2").body == b"v3"


# --- deprecated -------------------------------------------------------------------------------------------------------
def deprecated(**changes: object) -> Wire:
    return {
        "lifecycle": "deprecated",
        "deprecated_at": 1_795_132_800.5,
        "sunset_at": SUNSET,
        "deprecation_link": LINK,
    } | changes


def told(answer: Answer) -> tuple[str | None, str | None, str | None]:
    return answer.field("deprecation"), answer.field("sunset"), answer.field("link")


ALL_TOLD = ("@1795132800", "Sat, 01 Jan 2028 00:00:00 GMT", f'<{LINK}>; rel="deprecation"')


def test_every_answer_of_a_deprecated_version_says_when_it_ends(plane: DataPlane) -> None:
    versions = Versions(plane, v1=deprecated())
    for _ in range(3):  # the way that is remembered too
        answer = versions.ask()
        assert answer.body == b"v1"
        assert told(answer) == ALL_TOLD
    assert told(versions.ask("X-API-Version: v1", method="POST")) == ALL_TOLD


def test_a_supported_version_says_nothing(plane: DataPlane) -> None:
    versions = Versions(plane, v1=deprecated())
    assert told(versions.ask("X-API-Version: v2")) == (None, None, None)


def test_what_nobody_has_said_of_a_deprecation_is_left_out(plane: DataPlane) -> None:
    versions = Versions(plane, v1=deprecated(sunset_at=None, deprecation_link="", deprecated_at=None))
    assert told(versions.ask()) == ("@1", None, None)


def test_a_failure_of_a_deprecated_version_says_it_too(plane: DataPlane) -> None:
    versions = Versions(plane, v1=deprecated())
    versions.upstreams[0].close()
    answer = versions.ask()
    assert answer.status == 502
    assert told(answer) == ALL_TOLD


# --- measured ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policies", [{}, {"caching": {}}, {"compression": {"minBytes": 1}}])
def test_what_clients_bring_about_says_nothing_of_a_version(plane: DataPlane, policies: Any) -> None:
    """Or any of them could have a rollout rolled back."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    body = random.randbytes(8_000_000)
    upstream = plane.serve(replying(head % len(body) + body))
    versions = [version_wire(name, 1, upstream.url) for name in ("v1", "v2")]
    name = f"measured{'_'.join(policies)}"
    path = serve(plane, upstream, name=name, versions=versions, policies=policies, idle_timeout_ms=300)
    assert plane.ask("GET", path, f"Via: {', '.join(['1.1 portcullis'] * 9)}").status == 508
    if "caching" in policies:
        assert plane.ask("GET", path, "Cache-Control: only-if-cached").status == 504
    with plane.connect(receive_buffer=4096) as client:
        answer, _ = client.send(plane.request("GET", path, "Accept-Encoding: gzip")).begin_answer()
        assert plane.log_line(answer.field("x-request-id"))["code"] == "aborted"
    assert plane.ask("GET", path).body == body

    def counted() -> list[list[int]]:
        rows = [row for each in plane.feed.heard if each["type"] == "version_traffic" for row in each["rows"]]
        return [row[3:5] for row in rows if row[0] == f"svc_{name}"]

    eventually(lambda: counted(), what="what has been counted")
    assert counted() == [[1, 0]]


# --- retired ----------------------------------------------------------------------------------------------------------
def test_a_retired_version_is_gone_and_says_what_to_use_instead(plane: DataPlane) -> None:
    versions = Versions(plane, 0, 100, 0, v1=deprecated(lifecycle="retired"), v3=deprecated())
    for answer in (versions.ask("X-API-Version: 1"), versions.ask("Accept: a/b;version=v1")):
        assert (answer.status, answer.code) == (410, "version_retired")
        assert told(answer) == ALL_TOLD
        problem = answer.problem
        assert (problem["supported"], problem["link"]) == (["v2"], LINK)
        assert "v2" in problem["detail"]


def test_a_retired_version_is_never_chosen_by_weight(plane: DataPlane) -> None:
    versions = Versions(plane, 9000, 1, 0, v1=deprecated(lifecycle="retired"))
    keys = [plane.new_key() for _ in range(20)]
    assert {versions.ask(key=key).body for key in keys} == {b"v2"}


def test_a_route_that_pins_a_retired_version_is_gone(plane: DataPlane) -> None:
    versions = Versions(plane, v3=deprecated(lifecycle="retired"))
    path = f"/api/pinned/{versions.name}"
    plane.feed.put("route", route_wire(f"rte_{versions.name}", path, service=versions.name, version="v3"))
    assert plane.ask("GET", path).code == "version_retired"


def test_who_may_not_use_a_retired_version_learns_nothing_of_it(plane: DataPlane) -> None:
    versions = Versions(plane, v3=deprecated(lifecycle="retired"))
    plane.feed.put("application", application_wire(id="app_v1", name="only v1", versions=["v1"]))
    answer = versions.ask("X-API-Version: 3", key=plane.new_key(application="app_v1"))
    assert (answer.status, answer.code) == (403, "version_not_allowed")
