"""Document 001's API through a real gateway's own port: the request after a write meets what was written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.gateway_traffic import echo
from tests.scripted_upstream import Upstream

ROUTES = "/api/v1/management/routes"


@pytest.fixture
def admin(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.admin() as admin:
        yield admin


@pytest.fixture
def upstreams() -> Iterator[list[Upstream]]:
    with closing(Upstream(echo)) as first, closing(Upstream(echo)) as second:
        yield [first, second]


def document(upstreams: list[Upstream], **changes: Any) -> dict[str, Any]:
    return {
        "id": "people",
        "name": "People",
        "conditions": [
            {"path_pattern": "/api/v1/people/*", "method": "GET"},
            {"path_pattern": "/api/folk/{id}", "headers": {"X-Beta": "yes"}},
        ],
        "targets": [{"host": "127.0.0.1", "port": upstream.port} for upstream in upstreams],
        "load_balance": "round_robin",
        "timeout": "5s",
        "retries": 1,
        "require_auth": False,
    } | changes


def ask(gateway: GatewayProcess, path: str, **fields: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return httpx.get(gateway.url + path, headers=headers, timeout=20, trust_env=False)


def test_a_route_serves_as_soon_as_it_is_made_and_no_longer_than_it_is(
    gateway: GatewayProcess, admin: httpx.Client, upstreams: list[Upstream]
) -> None:
    made = admin.post(ROUTES, json=document(upstreams))
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"{ROUTES}/people"
    assert "x-config-pending" not in made.headers

    answers = [ask(gateway, f"/api/v1/people/{number}") for number in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert answers[3].text.startswith("/api/v1/people/3 ")
    assert [len(upstream.requests) for upstream in upstreams] == [2, 2]
    assert ask(gateway, "/api/folk/7", X_Beta="yes").status_code == 200
    assert ask(gateway, "/api/folk/7").status_code == 404

    keyed = admin.put(f"{ROUTES}/people", json=document(upstreams[:1], require_auth=True))
    assert keyed.status_code == 200, keyed.text
    assert ask(gateway, "/api/v1/people/1").status_code == 401

    assert admin.delete(f"{ROUTES}/people").status_code == 204
    assert ask(gateway, "/api/v1/people/1").status_code == 404


def test_it_is_one_revision_in_the_history(
    gateway: GatewayProcess, admin: httpx.Client, upstreams: list[Upstream]
) -> None:
    made = admin.post(ROUTES, json=document(upstreams), headers={"X-Change-Reason": "as the document has it"})
    revision = admin.get(f"/admin/revisions/{made.headers['x-config-revision']}").json()
    assert revision["reason"] == "as the document has it"
    kinds = [change["kind"] for change in revision["changes"]]
    assert sorted(kinds) == ["route", "route", "service", "target", "target", "version"]
    assert admin.delete(f"{ROUTES}/people").status_code == 204


def test_nobody_writes_without_an_admin_key(gateway: GatewayProcess, upstreams: list[Upstream]) -> None:
    answer = httpx.post(gateway.url + ROUTES, json=document(upstreams), timeout=20, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_credentials")


def test_the_whole_gateway_is_closed_and_opened_by_an_admin(
    gateway: GatewayProcess, admin: httpx.Client, upstreams: list[Upstream]
) -> None:
    assert admin.post(ROUTES, json=document(upstreams)).status_code == 201
    try:
        closed = admin.patch("/admin/gateway", json={"maintenance": {"message": "Back at nine."}})
        assert closed.status_code == 200, closed.text
        answer = ask(gateway, "/api/v1/people/1")
        assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (
            503,
            "maintenance",
            "Back at nine.",
        )
        assert ask(gateway, "/health").status_code == 200
        assert admin.get("/admin/routing/services").status_code == 200
    finally:
        assert admin.put("/admin/gateway", json={"maintenance": None}).status_code == 200
    assert ask(gateway, "/api/v1/people/1").status_code == 200
    assert admin.delete(f"{ROUTES}/people").status_code == 204
