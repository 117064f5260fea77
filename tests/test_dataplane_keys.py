"""Keys that are restricted, deprecated or near their end, and who used them: asked of a running worker."""

import time
from datetime import UTC, datetime

import pytest

from tests.dataplane import DataPlane
from tests.gateway_process import eventually
from tests.raw_http import Answer
from tests.scripted_upstream import Upstream
from tests.wires import application_wire

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@pytest.fixture(scope="module")
def upstream(plane: DataPlane) -> Upstream:
    return plane.serve()


def told(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.code if answer.status != 200 else ""


def test_a_restricted_key_is_refused_with_its_reason_and_no_other_is(plane: DataPlane, upstream: Upstream) -> None:
    other_day = _DAYS[(datetime.now(UTC).weekday() + 3) % 7]
    keys = {
        "another address": ({"ips": ["127.0.0.8/29"]}, (403, "ip_not_allowed")),
        "the address": ({"ips": ["127.0.0.1"]}, (200, "")),
        "another day": ({"hours": [{"days": [other_day]}]}, (403, "key_not_allowed_now")),
        "any day": ({"hours": [{"days": list(_DAYS)}], "timeZone": "Asia/Tokyo"}, (200, "")),
        "another service": ({"services": ["elsewhere"]}, (403, "service_not_allowed")),
        "the service": ({"services": [upstream.path.rpartition("/")[2]]}, (200, "")),
    }
    for what, (restrictions, expected) in keys.items():
        key = plane.new_key(restrictions=restrictions)
        with plane.connect() as client:  # the second one is recognised by its connection
            for _ in range(2):
                answer = client.send(plane.request("GET", f"{upstream.path}/x", key=key)).answer()
                assert told(answer) == expected, what


def test_an_address_is_judged_for_each_request(plane: DataPlane, upstream: Upstream) -> None:
    key = plane.new_key(restrictions={"ips": ["127.0.0.2"]})
    path = f"{upstream.path}/x"
    statuses = [plane.ask("GET", path, key=key, source=f"127.0.0.{number}").status for number in (2, 3, 2)]
    assert statuses == [200, 403, 200]


def test_restrictions_take_force_on_a_connection_that_used_the_key(plane: DataPlane, upstream: Upstream) -> None:
    key = plane.new_key()
    request = plane.request("GET", f"{upstream.path}/x", key=key)
    record = plane.feed.records("api_key")[list(plane.feed.records("api_key"))[-1]]
    with plane.connect() as client:
        assert client.send(request).answer().status == 200
        plane.feed.put("api_key", record | {"restrictions": {"services": ["elsewhere"]}})
        assert told(client.send(request).answer()) == (403, "service_not_allowed")


def test_answers_say_when_their_key_expires_only_if_that_is_soon(plane: DataPlane, upstream: Upstream) -> None:
    soon, late = int(time.time()) + 3600, int(time.time()) + 30 * 86_400
    expected = {
        plane.new_key(expires_at=soon): f"@{soon}",
        plane.new_key(expires_at=late): None,
        plane.new_key(expires_at=None): None,
        plane.new_key(expires_at=late, deprecated=True): f"@{late};deprecated",
    }
    for key, field in expected.items():
        assert plane.ask("GET", f"{upstream.path}/x", key=key).field("x-gateway-key-expires") == field


def test_keys_of_one_line_share_one_limit(plane: DataPlane, upstream: Upstream) -> None:
    plane.feed.put("application", application_wire(id="app_line", name="line", rate_limit=3))
    first = plane.new_key(application="app_line", bucket="key_first")
    second = plane.new_key(application="app_line", bucket="key_first")
    path = f"{upstream.path}/x"
    assert [plane.ask("GET", path, key=key).status for key in (first, second, first, second)] == [200, 200, 200, 429]


def test_uses_are_told_by_key_and_address(plane: DataPlane, upstream: Upstream) -> None:
    key = plane.new_key()
    key_id = list(plane.feed.records("api_key"))[-1]
    with plane.connect() as client:
        for _ in range(3):
            client.send(plane.request("GET", f"{upstream.path}/x", key=key)).answer()
    plane.ask("GET", f"{upstream.path}/x", key=key, source="127.0.0.4")

    def uses() -> dict[str, int]:
        found: dict[str, int] = {}
        for message in plane.feed.heard:
            if message["type"] == "used":
                for of, address, requests, _ in message["rows"]:
                    if of == key_id:
                        found[address] = found.get(address, 0) + requests
        return found

    eventually(lambda: uses() == {"127.0.0.1": 3, "127.0.0.4": 1}, 25.0, "the uses of the key")
