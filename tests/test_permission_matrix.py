"""Every endpoint, every caller, their own and another tenant's object, made from the URL configuration: a new endpoint
without a rule, or one whose rule does not hold, fails here."""

from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import path
from rest_framework.views import APIView

from core.permissions import RESOURCES, check_permissions
from core.permissions import Caller as CallerOfRequest
from core.revisions import Actor
from gateway_project.endpoints import Endpoint, Undeclared, endpoints, walked
from gateway_project.permissions_page import permissions_page
from tests.permission_world import Caller, Objects, make_world, nowhere

pytestmark = pytest.mark.django_db
ENDPOINTS = [endpoint for endpoint in endpoints() if not endpoint.open_to]
API = [endpoint for endpoint in ENDPOINTS if not endpoint.is_page]
PAGES = [endpoint for endpoint in ENDPOINTS if endpoint.is_page]
# Nobody has a registration token, a passkey or another session at first.
_NOTHING_THERE = (
    "/admin/routing/services/{name}/registration-token",
    "/admin/services/{name}/registration-token",
    "/account/",
)
_CONFIRMS = "/account/confirm"  # with what nobody here has: a password, a second factor
_TELLS_NOTHING = {"/history/{number}/acknowledged"}  # whether the nodes have got as far as that number
CLIENT = Client()
World = tuple[Objects, Objects, list[Caller]]


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any, tmp_path_factory: Any) -> Iterator[World]:
    """Made once, in a transaction that ends with the module; each request's own is rolled back behind it."""
    from django.test import override_settings

    storages = {"staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}}
    changed = override_settings(
        STATIC_ROOT=str(tmp_path_factory.mktemp("static")), STORAGES=storages, AUTH_FAILURES_PER_MINUTE=10**6
    )
    with django_db_blocker.unblock(), changed, transaction.atomic():
        yield make_world()
        transaction.set_rollback(True)


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def is_of_all(endpoint: Endpoint) -> bool:
    return any(RESOURCES[permission.split(":")[1]].of_all for permission in endpoint.permissions)


def ask(endpoint: Endpoint, caller: Caller, path: str) -> int:
    """The status of the answer; whatever happened is undone."""
    with transaction.atomic():
        if endpoint.is_page:
            CLIENT.cookies = SimpleCookie(caller.cookies)  # as they were: an answer may have ended the session
            answer = getattr(CLIENT, endpoint.method.lower())(path)
        else:
            headers = {"X-API-Key": caller.key} if caller.key else {}
            body = {} if endpoint.method in ("GET", "DELETE") else {"data": "{}", "content_type": "application/json"}
            CLIENT.cookies.clear()
            answer = getattr(CLIENT, endpoint.method.lower())(path, headers=headers, **body)
        transaction.set_rollback(True)
    if endpoint.is_page and answer.status_code == 302 and answer["Location"].startswith("/login"):
        return 401
    return int(answer.status_code)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_an_endpoint_serves_whom_its_rule_allows_and_nobody_else(endpoint: Endpoint, world: World) -> None:
    """Another tenant's object is answered exactly as one that does not exist."""
    home, abroad, callers = world
    own, theirs, none = (
        objects.path(endpoint.route, is_page=endpoint.is_page) for objects in (home, abroad, nowhere(home))
    )
    as_if_not_there = 0
    for caller in callers:
        if endpoint.is_page and caller.cookies is None:
            continue  # no key opens the panel
        status = ask(endpoint, caller, own)
        if caller.permissions is None:
            assert status == 401, caller.name
        elif not endpoint.allows(caller.permissions):
            assert status == 403, caller.name
        else:
            assert status < 500 and status != 401, caller.name
            assert status != 403 or endpoint.path.startswith(_CONFIRMS), caller.name
            assert status != 404 or endpoint.path.startswith(_NOTHING_THERE), caller.name
            if own != theirs and not is_of_all(endpoint):
                as_if_not_there = as_if_not_there or ask(endpoint, caller, none)
                assert ask(endpoint, caller, theirs) == as_if_not_there, caller.name
                assert as_if_not_there in (404, 405, 422) or endpoint.path in _TELLS_NOTHING, as_if_not_there


def test_the_rules_name_permissions_that_there_are() -> None:
    for endpoint in ENDPOINTS:
        check_permissions(endpoint.permissions)


def test_every_resource_is_asked_for_or_foreseen() -> None:
    asked = {permission.split(":")[1] for endpoint in ENDPOINTS for permission in endpoint.permissions}

    assert asked <= set(RESOURCES)


class Forgotten(APIView):
    permission_classes = []

    def get(self, request: Any) -> None: ...


@pytest.mark.parametrize("view", [Forgotten.as_view(), lambda request: None], ids=["of the API", "of Django"])
def test_an_endpoint_without_a_rule_is_found(view: Any) -> None:
    with pytest.raises(Undeclared, match="/forgotten"):
        list(walked([path("forgotten", view)]))


def test_the_page_of_permissions_is_current() -> None:
    """`manage.py permissions --write` makes it so."""
    page = Path(__file__).parent.parent / "docs" / "permissions.md"

    assert page.read_text() == permissions_page(), "run: manage.py permissions --write"


def test_what_is_the_installations_is_no_other_tenants() -> None:
    for endpoint in filter(is_of_all, ENDPOINTS):
        far = CallerOfRequest(Actor("user", tenant_id="acme"), ("admin:*",))
        assert not all(far.may(permission) for permission in endpoint.permissions), name_of(endpoint)
