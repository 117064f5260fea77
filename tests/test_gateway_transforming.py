"""Conditions, rewriting and transformations as an admin sets them, through a whole gateway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from tests.gateway_process import GatewayProcess
from tests.gateway_traffic import create, new_key, panel_api
from tests.scripted_upstream import Upstream, replying

ANSWER = b'{"id":7,"internal":{"cost":1},"items":[{"n":1,"cost":2}]}'


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Powered-By: x\r\nContent-Length: %d\r\n\r\n"
    with closing(Upstream(replying(head % len(ANSWER) + ANSWER))) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def admin(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with panel_api(gateway) as admin:
        yield admin


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess, admin: httpx.Client, upstream: Upstream) -> Iterator[httpx.Client]:
    create(admin, "/admin/routing/services", name="transformed", defaultUrl=upstream.url)
    application = create(admin, "/admin/access/applications", name="Transformers", allowedServices=["transformed"])
    key = new_key(admin, application["id"])["key"]
    with httpx.Client(base_url=gateway.url, headers={"X-API-Key": key}, timeout=20, trust_env=False) as client:
        yield client


def test_a_route_does_what_the_admin_says(admin: httpx.Client, client: httpx.Client, upstream: Upstream) -> None:
    route = create(
        admin,
        "/admin/routing/routes",
        name="transformed orders",
        path="/api/new/orders/{id}",
        service="transformed",
        conditions={"headers": [{"name": "X-App", "matches": "web|ios"}]},
        rewrite={"pattern": "^/api/new/(.*)", "replacement": r"/inner/\1"},
        transformation={
            "request": {
                "headers": {"set": [{"name": "X-Tenant", "value": "${lower(application.name)}"}]},
                "body": {"remove": ["isAdmin"]},
            },
            "response": {"headers": {"remove": ["x-powered-by"]}, "body": {"remove": ["internal", "items[*].cost"]}},
        },
    )
    assert client.put("/api/new/orders/7", json={}).status_code == 404
    answer = client.put("/api/new/orders/7", json={"isAdmin": True, "n": 1}, headers={"X-App": "web"})
    assert answer.status_code == 200, answer.text
    assert answer.content == b'{"id":7,"items":[{"n":1}]}'
    assert "x-powered-by" not in answer.headers
    seen = upstream.requests[-1]
    assert (seen.target, seen.body, seen.field("x-tenant")) == (b"/inner/orders/7", b'{"n":1}', b"transformers")
    assert admin.get(f"/admin/routing/routes/{route['id']}").json()["rewrite"] == route["rewrite"]


def test_what_could_not_work_is_refused_at_its_member(admin: httpx.Client, client: httpx.Client) -> None:
    answer = admin.post(
        "/admin/routing/routes",
        json={
            "name": "wrong",
            "path": "/api/other/{id}",
            "service": "transformed",
            "conditions": {"query": [{"name": "q", "matches": "(?=a)"}]},
            "rewrite": {"pattern": "(a)", "replacement": "/\\2"},
            "transformation": {"request": {"headers": {"set": [{"name": "x", "value": "${path.no}"}]}}},
        },
    )
    assert answer.status_code == 422
    assert set(answer.json()["errors"]) == {
        "conditions.query[0].matches",
        "rewrite.replacement",
        "transformation.request.headers.set[0].value",
    }
