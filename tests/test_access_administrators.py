"""Administrators and their roles: who may make whom, and what an account may do from one moment to the next."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import URLPattern, get_resolver
from rest_framework.test import APIClient

from access.administration.builtin import BUILTIN_ROLES, SUPER_ADMIN
from access.administration.roles import create_role, delete_role, update_role
from access.administration.users import delete_admin, update_admin
from access.models import AdminAccount, AdminRole
from core.api import ListViewSet
from core.faults import ClientFault, PolicyDenied
from core.models import AuditEvent, ConfigChange, ConfigRevision, TenantRow
from core.permissions import RESOURCES, common, covers
from tests.admin_api import client_with_key, problem_of
from tests.administrators import PASSWORD, ROLES, ROOT, USERS, client_of, client_with, key_of, make_account
from tests.panel_client import make_everything

pytestmark = pytest.mark.django_db


def super_admin() -> APIClient:
    return client_with(SUPER_ADMIN, username="root")


# --- roles ---------------------------------------------------------------------------------------------------------
def test_the_roles_of_the_requirements_are_there_from_the_beginning() -> None:
    found = {row.name: tuple(row.permissions) for row in AdminRole.objects.filter(is_builtin=True)}

    assert found == {name: permissions for name, (_, permissions) in BUILTIN_ROLES.items()}


def test_a_role_of_ones_own_gives_what_it_says() -> None:
    made = super_admin().post(ROLES, {"name": "ROUTER", "permissions": ["admin:routes:*", "admin:services:read"]})
    assert made.status_code == 201, made.content
    assert made.json()["isBuiltin"] is False
    router = client_with("ROUTER", username="rob")

    assert router.get("/admin/routing/services").status_code == 200
    assert router.get("/admin/routing/routes").status_code == 200
    problem_of(router.post("/admin/routing/services", {"name": "orders"}), 403, "insufficient_scope")
    problem_of(router.get("/keys"), 403, "insufficient_scope")


@pytest.mark.parametrize(
    ("permission", "sentence"),
    [
        ("keys:read", "is no permission"),
        ("admin", "is no permission"),
        ("admin:kyes:read", "There is no resource 'kyes'"),
        ("admin:keys:sell", "no action 'sell'"),
        ("admin:nodes:delete", "no action 'delete'"),
    ],
)
def test_a_permission_that_nothing_asks_for_is_refused_with_a_sentence(permission: str, sentence: str) -> None:
    answer = super_admin().post(ROLES, {"name": "ODD", "permissions": [permission]})

    assert sentence in problem_of(answer, 422, "invalid_field")["errors"]["permissions"][0]


@pytest.mark.parametrize("method", ["put", "patch", "delete"])
def test_nobody_edits_a_builtin_role(method: str) -> None:
    body = {"name": "SUPPORT", "description": "mine", "permissions": []}
    answer = getattr(super_admin(), method)(f"{ROLES}/SUPPORT", body if method != "delete" else None)

    assert "built in" in problem_of(answer, 409, "conflict")["detail"]
    assert super_admin_count_of_permissions("SUPPORT") == 2


def super_admin_count_of_permissions(name: str) -> int:
    return len(AdminRole.objects.get(name=name).permissions)


def test_a_role_that_somebody_has_stays() -> None:
    role = create_role(name="READER", permissions=["admin:keys:read"], **ROOT)
    account = make_account("rita", "READER")

    with pytest.raises(ClientFault, match="rita"):
        delete_role(role=role, **ROOT)

    update_admin(account=account, changes={"roles": []}, **ROOT)
    delete_role(role=role, **ROOT)


def test_what_a_role_loses_its_holders_lose_with_the_next_request() -> None:
    role = create_role(name="READER", permissions=["admin:keys:read"], **ROOT)
    reader = client_with("READER")
    assert reader.get("/keys").status_code == 200

    update_role(role=role, changes={"permissions": []}, **ROOT)

    problem_of(reader.get("/keys"), 403, "insufficient_scope")


def test_the_registry_lists_what_may_be_written_and_what_one_has_oneself() -> None:
    create_role(name="CURIOUS", permissions=["admin:roles:read"], **ROOT)
    answer = client_with("CURIOUS").get("/admin/access/permissions").json()

    assert answer["own"] == ["admin:roles:read"]
    keys = next(entry for entry in answer["resources"] if entry["resource"] == "keys")
    assert keys["permissions"] == [f"admin:keys:{action}" for action in ("read", "create", "update", "delete", "*")]


# --- users ---------------------------------------------------------------------------------------------------------
def test_an_administrator_from_their_making_to_their_end() -> None:
    root = super_admin()
    body = {"username": "kim", "email": "kim@example.com", "name": "Kim", "roles": ["KEY_VIEWER"], "password": PASSWORD}
    made = root.post(USERS, body)
    assert made.status_code == 201, made.content
    kim = made.json()
    assert kim["permissions"] == ["admin:keys:read"] and "password" not in kim and kim["isActive"] is True
    where = made["Location"]
    assert root.get(where).json()["email"] == "kim@example.com"
    assert User.objects.get(username="kim").check_password(PASSWORD)

    changed = root.patch(where, {"roles": ["KEY_ADMIN", "SUPPORT"]}, headers={"If-Match": made["ETag"]})
    assert changed.json()["permissions"] == ["admin:keys:*", "admin:keys:read", "admin:logs:read"]
    problem_of(root.patch(where, {"name": "K"}, headers={"If-Match": made["ETag"]}), 412, "stale_revision")

    assert root.post(f"{where}/deactivate").json()["isActive"] is False
    assert not User.objects.get(username="kim").is_active
    assert root.post(f"{where}/activate").json()["permissions"] == [
        "admin:keys:*",
        "admin:keys:read",
        "admin:logs:read",
    ]
    assert [row["username"] for row in root.get(USERS, {"search": "kim"}).json()["users"]] == ["kim"]

    assert root.delete(where).status_code == 204
    assert not User.objects.filter(username="kim").exists()
    problem_of(root.get(where), 404, "not_found")
    kinds = ConfigChange.objects.filter(kind="admin").order_by("pk").values_list("object_name", "operation")
    assert list(kinds)[-1] == ("kim", "delete")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"username": "", "email": ""}, "username"),
        ({"username": "a b"}, "username"),
        ({"username": "kim", "email": "nowhere"}, "email"),
        ({"username": "kim", "roles": ["KING"]}, "roles"),
        ({"username": "kim", "roles": ["SUPPORT", "SUPPORT"]}, "roles"),
        ({"username": "kim", "password": "short"}, "password"),
        ({"username": "kimberley-jones", "password": "kimberley-jones"}, "password"),
        ({"username": "kim", "isSuperuser": True}, "isSuperuser"),
    ],
)
def test_what_is_wrong_with_an_administrator_is_said_at_the_field(body: dict[str, Any], field: str) -> None:
    errors = problem_of(super_admin().post(USERS, body), 422, "invalid_field")["errors"]

    assert list(errors) == [field]


def test_names_and_addresses_are_unique_whatever_their_case() -> None:
    make_account("kim", email="kim@example.com")
    root = super_admin()

    assert "username" in problem_of(root.post(USERS, {"username": "KIM"}), 409, "conflict")["errors"]
    again = root.post(USERS, {"username": "k2", "email": "Kim@example.com"})
    assert "email" in problem_of(again, 409, "conflict")["errors"]


def test_no_revision_and_no_audit_entry_holds_a_password() -> None:
    root = super_admin()
    where = root.post(USERS, {"username": "kim", "password": PASSWORD})["Location"]
    root.patch(where, {"password": PASSWORD + "!"})

    hashed = User.objects.get(username="kim").password
    assert User.objects.get(username="kim").check_password(PASSWORD + "!")
    kept = str(list(ConfigChange.objects.values())) + str(list(AuditEvent.objects.values()))
    assert PASSWORD not in kept and hashed not in kept and "argon2" not in kept
    assert AuditEvent.objects.get(action="admin.password").object_name == "kim"


def test_revisions_and_audit_entries_say_with_which_request_and_from_where() -> None:
    super_admin().post(USERS, {"username": "kim"}, headers={"X-Request-ID": "req-17"})

    revision = ConfigRevision.objects.latest("number")
    assert (revision.request_id, revision.address, revision.actor_name) == ("req-17", "127.0.0.1", "root (laptop)")


# --- keys of administrators (K10) ----------------------------------------------------------------------------------
def test_a_key_may_do_what_its_scopes_and_its_users_rights_have_in_common() -> None:
    account = make_account("kim", "KEY_ADMIN")
    wide, narrow = client_of(account), client_of(account, "admin:keys:read", "admin:users:read")

    assert wide.get("/keys").status_code == 200
    problem_of(wide.get(USERS), 403, "insufficient_scope")
    assert narrow.get("/keys").status_code == 200
    problem_of(narrow.post("/keys", {"name": "x", "owner": "y"}), 403, "insufficient_scope")
    problem_of(narrow.get(USERS), 403, "insufficient_scope")

    update_admin(account=account, changes={"roles": []}, **ROOT)
    problem_of(wide.get("/keys"), 403, "insufficient_scope")


def test_keys_die_when_their_user_is_deactivated_and_with_the_user() -> None:
    root, account = super_admin(), make_account("kim", "KEY_ADMIN")
    client = client_of(account)
    root.post(f"{USERS}/{account.pk}/deactivate")
    problem_of(client.get("/keys"), 401, "invalid_credentials")

    root.post(f"{USERS}/{account.pk}/activate")
    assert client.get("/keys").status_code == 200
    root.delete(f"{USERS}/{account.pk}")
    problem_of(client.get("/keys"), 401, "invalid_credentials")


@pytest.mark.parametrize(
    ("scopes", "rights", "expected"),
    [
        (("admin:*",), ("admin:keys:read",), ("admin:keys:read",)),
        (("admin:keys:read",), ("admin:*",), ("admin:keys:read",)),
        (("admin:keys:*", "admin:users:read"), ("admin:keys:read", "admin:users:*"),
         ("admin:keys:read", "admin:users:read")),
        (("admin:keys:*",), ("admin:users:*",), ()),
        ((), ("admin:*",), ()),
    ],
)  # fmt: skip
def test_what_two_sets_of_permissions_have_in_common(
    scopes: tuple[str, ...], rights: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert common(scopes, rights) == expected
    assert all(covers(scopes, one) and covers(rights, one) for one in expected)


# --- rule 14 -------------------------------------------------------------------------------------------------------
def test_nobody_makes_somebody_mightier_than_themselves() -> None:
    user_admin = client_with("USER_ADMIN")

    problem_of(user_admin.post(USERS, {"username": "x", "roles": ["SUPER_ADMIN"]}), 403, "insufficient_scope")
    problem_of(user_admin.post(USERS, {"username": "x", "roles": ["KEY_VIEWER"]}), 403, "insufficient_scope")
    assert user_admin.post(USERS, {"username": "x", "roles": ["USER_ADMIN"]}).status_code == 201
    assert not User.objects.filter(username="x", is_superuser=True).exists()


def test_nobody_raises_themselves() -> None:
    account = make_account("uma", "USER_ADMIN")

    raised = client_of(account).patch(f"{USERS}/{account.pk}", {"roles": ["USER_ADMIN", "SUPER_ADMIN"]})
    problem_of(raised, 403, "insufficient_scope")


@pytest.mark.parametrize("body", [{"password": PASSWORD}, {"email": "mine@example.com"}, {"isActive": False}, None])
def test_nobody_touches_an_account_that_may_more_than_they(body: dict[str, Any] | None) -> None:
    root = make_account("root", SUPER_ADMIN)
    user_admin = client_with("USER_ADMIN")
    where = f"{USERS}/{root.pk}"

    answer = user_admin.delete(where) if body is None else user_admin.patch(where, body)
    problem_of(answer, 403, "insufficient_scope")


def test_nobody_writes_into_a_role_what_they_do_not_have() -> None:
    create_role(name="ROLER", permissions=["admin:roles:*", "admin:keys:read"], **ROOT)
    strong = create_role(name="STRONG", permissions=["admin:services:*"], **ROOT)
    roler = client_with("ROLER")

    problem_of(roler.post(ROLES, {"name": "MINE", "permissions": ["admin:*"]}), 403, "insufficient_scope")
    assert roler.post(ROLES, {"name": "MINE", "permissions": ["admin:keys:read"]}).status_code == 201
    problem_of(roler.patch(f"{ROLES}/MINE", {"permissions": ["admin:keys:*"]}), 403, "insufficient_scope")
    problem_of(roler.patch(f"{ROLES}/STRONG", {"permissions": []}), 403, "insufficient_scope")
    problem_of(roler.delete(f"{ROLES}/STRONG"), 403, "insufficient_scope")
    assert AdminRole.objects.get(pk=strong.pk).permissions == ["admin:services:*"]


def test_a_narrow_key_gives_no_more_than_its_own_scopes_whoever_its_user_is() -> None:
    root = make_account("root", SUPER_ADMIN)
    narrow = client_with_key(key_of(root, "admin:users:*"))

    problem_of(narrow.post(USERS, {"username": "x", "roles": ["KEY_VIEWER"]}), 403, "insufficient_scope")


def test_the_last_super_admin_stays() -> None:
    account = make_account("root", SUPER_ADMIN)
    root = client_of(account)
    where = f"{USERS}/{account.pk}"
    for answer in (
        root.patch(where, {"roles": ["KEY_ADMIN"]}),
        root.patch(where, {"isActive": False}),
        root.post(f"{where}/deactivate"),
        root.delete(where),
    ):
        assert "last SUPER_ADMIN" in problem_of(answer, 409, "conflict")["detail"]

    make_account("second", SUPER_ADMIN)
    assert root.patch(where, {"roles": ["KEY_ADMIN"]}).status_code == 200
    assert not User.objects.get(username="root").is_superuser


def test_a_super_admin_who_is_deactivated_or_of_another_tenant_does_not_count() -> None:
    account = make_account("root", SUPER_ADMIN)
    make_account("gone", SUPER_ADMIN, is_active=False)
    make_account("far", SUPER_ADMIN, tenant="acme")

    with pytest.raises(ClientFault, match="last SUPER_ADMIN"):
        update_admin(account=account, changes={"roles": []}, **ROOT)
    with pytest.raises(PolicyDenied):
        update_admin(account=account, changes={"roles": []}, own_permissions=("admin:users:*",), **ROOT)


# --- tenants -------------------------------------------------------------------------------------------------------
def test_an_administrator_of_another_tenant_sees_and_makes_only_what_is_theirs() -> None:
    mine, theirs = super_admin(), client_with(SUPER_ADMIN, username="far", tenant="acme")
    service = mine.post("/admin/routing/services", {"name": "orders", "defaultUrl": "http://10.0.0.1"})
    assert service.status_code == 201, service.content

    problem_of(theirs.get("/admin/routing/services/orders"), 404, "not_found")
    problem_of(theirs.delete("/admin/routing/services/orders"), 404, "not_found")
    assert theirs.get("/admin/routing/services").json()["count"] == 0
    assert theirs.post("/admin/routing/services", {"name": "theirs"}).status_code == 201
    assert mine.get("/admin/routing/services").json()["count"] == 1
    assert [row["username"] for row in theirs.get(USERS).json()["users"]] == ["far"]
    assert theirs.post(ROLES, {"name": "LOCAL", "permissions": ["admin:keys:read"]}).status_code == 201
    problem_of(mine.get(f"{ROLES}/LOCAL"), 404, "not_found")
    assert (
        "LOCAL"
        in problem_of(mine.post(USERS, {"username": "x", "roles": ["LOCAL"]}), 422, "invalid_field")["errors"]["roles"][
            0
        ]
    )
    assert AdminAccount.objects.get(user__username="far").tenant_id == "acme"


@pytest.mark.parametrize(
    "path", ["/api/v1/orders/pay", "/api/v2/orders/*", "/api/v1/pay/x", "/api/v1/jobs", "/api/*", "/api/v1/{any}/x"]
)
def test_no_tenant_gets_the_requests_of_another_by_a_name_or_a_path(path: str) -> None:
    """URLs are everybody's, and workers find services by name: of two of one name, one would get all requests."""
    mine, theirs = super_admin(), client_with(SUPER_ADMIN, username="far", tenant="acme")
    assert mine.post("/admin/routing/services", {"name": "orders", "defaultUrl": "http://10.0.0.1"}).status_code == 201
    jobs = {"name": "jobs", "taskName": "jobs.run", "queue": "jobs"}
    assert mine.post("/admin/routing/queue-routes", jobs).status_code == 201
    pay = {"name": "pay", "path": "/api/v1/pay/{id}", "service": "orders"}
    assert mine.post("/admin/routing/routes", pay).status_code == 201
    own = {"name": "hidden", "defaultUrl": "http://10.0.0.2"}
    assert theirs.post("/admin/routing/services", own).status_code == 201

    for taken in ("orders", "jobs"):
        assert theirs.post("/admin/routing/services", {"name": taken}).status_code == 409
        assert theirs.post("/admin/routing/queue-routes", {**jobs, "name": taken}).status_code == 409
    route = theirs.post("/admin/routing/routes", {"name": "r", "path": path, "service": "hidden"})
    assert route.status_code in (409, 422) and "path" in route.json()["errors"]
    fine = {"name": "r", "path": "/api/v1/hidden/{id}", "service": "hidden"}
    assert theirs.post("/admin/routing/routes", fine).status_code == 201


def view_sets(patterns: list[Any]) -> set[type[ListViewSet[Any]]]:
    views = {getattr(pattern.callback, "cls", None) for pattern in patterns if isinstance(pattern, URLPattern)}
    return {view for view in views if isinstance(view, type) and issubclass(view, ListViewSet)}


def class_name(view: Any) -> str:
    return str(view.__name__)


@pytest.mark.parametrize("view", sorted(view_sets(get_resolver().url_patterns), key=class_name), ids=class_name)
def test_every_list_knows_what_leads_to_the_tenant_of_its_rows(view: type[ListViewSet[Any]]) -> None:
    assert view.queryset is not None
    has_tenant = issubclass(view.queryset.model, TenantRow) or bool(view.tenant_path)
    assert has_tenant or "get_queryset" in vars(view) or RESOURCES[view.resource].of_all


def test_the_circuits_of_another_tenant_are_not_shown() -> None:
    make_everything()

    assert super_admin().get("/admin/circuit-breaker").json()["count"] > 0
    theirs = client_with(SUPER_ADMIN, username="far", tenant="acme")
    assert theirs.get("/admin/circuit-breaker").json() == {"circuits": [], "count": 0, "cursor": None}


def test_the_history_of_another_tenant_is_not_shown() -> None:
    theirs = client_with(SUPER_ADMIN, username="far", tenant="acme")
    mine = super_admin()
    made = theirs.post("/admin/routing/services", {"name": "hidden"})["X-Config-Revision"]
    ours = mine.post("/admin/routing/services", {"name": "orders"})["X-Config-Revision"]

    assert theirs.get(f"/admin/revisions/{made}").json()["changes"][0]["objectName"] == "hidden"
    problem_of(mine.get(f"/admin/revisions/{made}"), 404, "not_found")
    problem_of(theirs.get(f"/admin/revisions/{ours}"), 404, "not_found")
    assert [row["number"] for row in mine.get("/admin/revisions", {"search": "hidden"}).json()["revisions"]] == []
    assert theirs.get("/admin/audit").json()["entries"][0]["resource"]["name"] == "hidden"


def test_what_holds_for_the_whole_installation_is_the_default_tenants() -> None:
    theirs = client_with(SUPER_ADMIN, username="far", tenant="acme")

    for path in ("/admin/gateway", "/admin/nodes", "/admin/health"):
        problem_of(theirs.get(path), 403, "insufficient_scope")


# --- several at once -----------------------------------------------------------------------------------------------
def together(*acts: Callable[[], Any]) -> list[Any]:
    """What each came to, or the fault it raised; all begin at the same time, each on a connection of its own."""
    barrier = Barrier(len(acts))

    def run(act: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return act()
        except ClientFault as fault:
            return fault
        finally:
            connection.close()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def super_admins() -> int:
    return User.objects.filter(is_active=True, is_staff=True, is_superuser=True).count()


@pytest.mark.django_db(transaction=True)
def test_of_the_last_two_who_dismiss_each_other_at_once_one_stays() -> None:
    for round_number in range(3):
        one, two = (make_account(f"{name}{round_number}", SUPER_ADMIN) for name in ("one", "two"))
        results = together(
            partial(update_admin, account=one, changes={"roles": ["KEY_VIEWER"]}, **ROOT),
            partial(delete_admin, account=two, **ROOT),
        )

        assert [type(result) for result in results].count(ClientFault) == 1
        assert super_admins() == 1
        User.objects.all().delete()


@pytest.mark.django_db(transaction=True)
def test_the_last_two_cannot_dismiss_each_other_through_api_panel_and_emergency_administration() -> None:
    """As an API client deactivates the one, the emergency administration takes the other's flag."""
    for round_number in range(3):
        one, two = (make_account(f"{name}{round_number}", SUPER_ADMIN) for name in ("one", "two"))
        by_key, by_browser = client_of(one), Client()
        by_browser.force_login(one.user)
        form = {"username": one.user.username, "is_active": "on", "is_staff": "on"}
        form |= {"date_joined_0": "2026-01-01", "date_joined_1": "10:00:00"}
        together(
            partial(by_key.post, f"{USERS}/{two.pk}/deactivate"),
            partial(by_browser.post, f"/django-admin/auth/user/{one.user_id}/change/", form),
        )

        assert super_admins() == 1
        User.objects.all().delete()
