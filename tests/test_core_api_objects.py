"""Reading and changing objects: conditions on what one has read, waiting for the gateways, pages of lists."""

import base64
import threading

import orjson
import pytest
from django.db import connection
from rest_framework.test import APIClient

from core.models import GatewayNode
from tests.admin_api import SERVICES, admin_with_key, client_with_key, problem_of

pytestmark = pytest.mark.django_db


# --- conditions on what one has read --------------------------------------------------------------------------------
@pytest.fixture
def orders(api: APIClient) -> str:
    return str(api.post(SERVICES, {"name": "orders"})["ETag"])


def test_an_object_that_has_not_changed_is_not_sent_again(api: APIClient, orders: str) -> None:
    for tag in (orders, f"W/{orders}", f'"1", {orders}', "*"):
        response = api.get(f"{SERVICES}/orders", headers={"If-None-Match": tag})
        assert (response.status_code, response.content, response["ETag"]) == (304, b"", orders)
    assert api.get(f"{SERVICES}/orders", headers={"If-None-Match": '"1"'}).status_code == 200


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_a_write_to_what_has_changed_meanwhile_is_refused(api: APIClient, orders: str, method: str) -> None:
    now = api.patch(f"{SERVICES}/orders", {"description": "newer"}, headers={"If-Match": orders})["ETag"]
    body = None if method == "delete" else {"description": "mine"}

    for tag in (orders, f"W/{now}", '"999999"', '"abc"', f'"{"9" * 5000}"'):
        response = getattr(api, method)(f"{SERVICES}/orders", body, headers={"If-Match": tag})
        problem = problem_of(response, 412, "stale_revision")
        assert (f'"{problem["current"]}"', response["ETag"]) == (now, now)
    assert api.get(f"{SERVICES}/orders").json()["description"] == "newer"
    assert getattr(api, method)(f"{SERVICES}/orders", body, headers={"If-Match": now}).status_code in (200, 204)


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_what_is_wrong_in_any_case_is_told_before_a_precondition(api: APIClient, orders: str, method: str) -> None:
    """RFC 9110 section 13.2.1: preconditions are not looked at when the answer would be a refusal without them."""
    headers = {"If-Match": '"999999"', "X-Change-Reason": "w" * 501}
    body = None if method == "delete" else {"description": "mine"}
    problem_of(getattr(api, method)(f"{SERVICES}/orders", body, headers=headers), 400, "bad_request")


@pytest.mark.parametrize("tag", ["42", '"', "", '"a" "b"'])
def test_what_is_no_entity_tag_is_said_to_be_none(api: APIClient, orders: str, tag: str) -> None:
    problem_of(api.delete(f"{SERVICES}/orders", headers={"If-Match": tag}), 400, "bad_request")


def test_what_was_read_can_be_changed_and_put_back(api: APIClient, orders: str) -> None:
    document = api.get(f"{SERVICES}/orders").json()

    changed = api.put(f"{SERVICES}/orders", document | {"description": "new"}, headers={"If-Match": orders})

    assert changed.status_code == 200
    assert changed.json()["description"] == "new"


def test_put_replaces_and_patch_does_not(api: APIClient, orders: str) -> None:
    api.patch(f"{SERVICES}/orders", {"description": "old", "isActive": False})

    patched = api.patch(f"{SERVICES}/orders", {"healthEndpoint": "/health"}).json()
    put = api.put(f"{SERVICES}/orders", {"healthEndpoint": "/ready"}).json()

    assert (patched["description"], patched["isActive"]) == ("old", False)
    assert (put["description"], put["isActive"], put["healthEndpoint"]) == ("", True, "/ready")


@pytest.mark.django_db(transaction=True)
def test_of_two_clients_that_write_at_once_one_gets_412(api: APIClient) -> None:
    tag = api.post(SERVICES, {"name": "orders"})["ETag"]
    key = admin_with_key()[1]
    statuses: list[int] = []
    barrier = threading.Barrier(2)

    def write(text: str) -> None:
        client = client_with_key(key)
        barrier.wait()
        response = client.patch(f"{SERVICES}/orders", {"description": text}, headers={"If-Match": tag})
        statuses.append(response.status_code)
        connection.close()

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(statuses) == [200, 412]


# --- waiting (rule 30) -----------------------------------------------------------------------------------------------
def _node(applied: int) -> None:
    GatewayNode.objects.create(id="host/0", host="host", slot=0, applied_revision=applied)


def test_a_write_says_its_revision_and_who_has_not_applied_it(api: APIClient) -> None:
    _node(applied=0)

    response = api.post(SERVICES, {"name": "orders"}, headers={"Prefer": "respond-async, wait=0"})

    assert response.status_code == 201
    assert response["X-Config-Revision"] == str(response.json()["revision"])
    assert response["X-Config-Pending"] == "host/0"
    assert response["Preference-Applied"] == "wait=0"


def test_a_write_that_every_node_has_applied_says_nothing_more(api: APIClient) -> None:
    _node(applied=10**6)

    response = api.post(SERVICES, {"name": "orders"})

    assert response.status_code == 201
    assert "X-Config-Pending" not in response


def test_a_write_that_changes_nothing_waits_for_nobody(api: APIClient, orders: str) -> None:
    _node(applied=0)

    response = api.patch(f"{SERVICES}/orders", {"description": ""})

    assert response.status_code == 200
    assert "X-Config-Revision" not in response
    assert response["ETag"] == orders


def test_the_reason_stands_in_the_history(api: APIClient) -> None:
    response = api.post(SERVICES, {"name": "orders"}, headers={"X-Change-Reason": "ticket%20%E2%84%96%2017"})

    revision = api.get(f"/admin/revisions/{response['X-Config-Revision']}").json()
    assert revision["reason"] == "ticket № 17"
    assert revision["actor"]["name"] == "ann (laptop)"
    assert [(change["kind"], change["operation"]) for change in revision["changes"]] == [("service", "create")]
    assert revision["changes"][0]["after"]["isActive"] is True
    problem_of(api.post(SERVICES, {"name": "x"}, headers={"X-Change-Reason": "a" * 501}), 400, "bad_request")


# --- lists ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ordering", ["name", "-name", "createdAt", "-createdAt"])
def test_pages_by_cursor_hold_everything_once_and_in_order(api: APIClient, ordering: str) -> None:
    for number in range(7):
        api.post(SERVICES, {"name": f"s{number}"})
    whole = [row["name"] for row in api.get(f"{SERVICES}?ordering={ordering}").json()["services"]]

    names, cursor, pages = [], "", 0
    while pages == 0 or cursor:
        page = api.get(f"{SERVICES}?limit=3&ordering={ordering}&cursor={cursor}").json()
        assert page["count"] == 7
        names += [row["name"] for row in page["services"]]
        cursor, pages = page["cursor"], pages + 1
        api.post(SERVICES, {"name": f"t{pages}"})
        api.delete(f"{SERVICES}/t{pages}")

    assert (names, pages) == (whole, 3)
    assert whole == sorted(whole, reverse=ordering.startswith("-"))


def cursor_at(created_at: str) -> str:
    position = orjson.dumps(["createdAt", created_at, "svc_0"])
    return "cursor=" + base64.urlsafe_b64encode(position).decode().rstrip("=")


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("limit=0", 422, "limit"),
        ("limit=501", 422, "limit"),
        ("limit=abc", 422, "limit"),
        ("limit=-1", 422, "limit"),
        ("limit=%D9%A3", 422, "limit"),
        ("ordering=password", 422, "ordering"),
        ("ordering=--name", 422, "ordering"),
        ("ordering=", 422, "ordering"),
        ("isActive=maybe", 422, "isActive"),
        ("isActive=", 422, "isActive"),
        ("search=%00", 422, "search"),
        ("nonsense=1", 422, "nonsense"),
        ("cursor=abc", 400, None),
        ("cursor=%00", 400, None),
        ("cursor=bnVsbA", 400, None),  # null
        (f"ordering=createdAt&{cursor_at('0001-01-01T00:00:00+14:00')}", 400, None),
        (f"ordering=createdAt&{cursor_at('9999-12-31T23:59:59-14:00')}", 400, None),
        (f"ordering=createdAt&{cursor_at('2026-13-01T00:00:00Z')}", 400, None),
        ("cursor=WyJuYW1lIixudWxsLG51bGxd", 400, None),  # ["name",null,null]
        ("cursor=WyItbmFtZSIsImEiLCJiIl0", 400, None),  # ["-name","a","b"]: another ordering's
        ("cursor=WyJuYW1lIiwiYVx1MDAwMCIsImIiXQ", 400, None),  # ["name","a\u0000","b"]
    ],
)
def test_a_parameter_that_means_nothing_is_never_ignored(
    api: APIClient, query: str, status: int, field: str | None
) -> None:
    response = api.get(f"{SERVICES}?{query}")

    problem = problem_of(response, status, "invalid_field" if status == 422 else "bad_request")
    assert field is None or list(problem["errors"]) == [field]


def test_lists_are_filtered_and_searched(api: APIClient) -> None:
    api.post(SERVICES, {"name": "orders", "description": "Invoices"})
    api.post(SERVICES, {"name": "email", "isActive": False})

    def names(query: str) -> list[str]:
        return [row["name"] for row in api.get(f"{SERVICES}?{query}").json()["services"]]

    assert names("") == ["email", "orders"]
    assert names("isActive=false") == ["email"]
    assert names("name=orders") == ["orders"]
    assert names("search=INVOICE") == ["orders"]
    assert names("search=%25") == []
