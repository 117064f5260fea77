"""What tests of the panel share: a signed-in client, configuration to look at, and what an answer says."""

import re
import time
from datetime import timedelta
from html import unescape
from typing import Any

from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from access.administration.users import create_admin
from access.alerts import create_channel
from access.end_users.accounts import create_user
from access.issuers import create_issuer
from access.limiting.services import create_limit
from access.models import AdminRole, AlertMessage, Application, EndUserRole, Invitation, LimitUse, UserSession
from access.services import create_application, create_entry
from core.audit import record
from core.models import ConfigRevision, GatewayNode
from core.revisions import Actor
from keys.models import ApiKey
from keys.services import create_key
from queues.models import QueuedTask, QueueRoute
from queues.services import create_queue_route
from routing.models import Route, ServiceConfig, ServiceVersion, TargetStatus
from routing.rollouts import start_rollout
from routing.services import (
    create_route,
    create_service,
    create_version,
    update_route,
    update_service,
    update_version,
)
from routing.traffic import Use, add_uses

PASSWORD = "correct horse battery"
BOB: dict[str, Any] = {"actor": Actor("user", "2", "bob"), "source": "api"}
HTMX = {"HX-Request": "true", "HX-Target": "main"}


def make_admin(username: str = "ann") -> User:
    return User.objects.create_superuser(username, password=PASSWORD)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def text_of(response: Any) -> str:
    """What a person reads: without tags, with single spaces."""
    return text_in(response.content.decode())


def text_in(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def latest_revision() -> ConfigRevision:
    return ConfigRevision.objects.latest("number")


def make_service(name: str = "billing", **weights: int) -> ServiceConfig:
    """A service with a version for each weight."""
    service = create_service(name=name, description=f"All about {name}", **BOB)
    for place, (version, weight) in enumerate(weights.items()):
        create_version(service=service, version=version, url=f"http://10.0.0.{place + 1}:8000", weight=weight, **BOB)
    return service


def make_queue_route(name: str = "email-send") -> QueueRoute:
    return create_queue_route(name=name, task_name="email.send", queue="email", **BOB)


def make_task(queue_route: QueueRoute, state: str = "succeeded", **fields: Any) -> QueuedTask:
    return QueuedTask.objects.create(
        queue_route_id=queue_route.pk,
        queue_route_name=queue_route.name,
        task_name=queue_route.task_name,
        queue=queue_route.queue,
        arguments=queue_route.arguments,
        body={"secret": "in the body"},
        state=state,
        **fields,
    )


def make_everything() -> dict[str, Any]:
    """One of each kind, and what hangs on it."""
    service = make_service("billing", v1=75, v2=25, v3=0)
    queue_route = make_queue_route()
    application = create_application(name="mobile", allowed_services=["billing", "gone"], **BOB)
    entry = create_entry(application=application, endpoint_path="/api/v1/billing/{id}", is_public=True, **BOB).entry
    key = create_key(name="production", application=application, **BOB).row
    route = create_route(
        name="invoices", path="/api/v1/invoices/*", methods=["GET"], service=service, strip_prefix="/api/v1", **BOB
    )
    create_route(name="mail", path="/api/v1/mail", methods=["POST"], queue_route=queue_route, **BOB)
    conditions = {"headers": [{"name": "x-beta", "equals": "yes"}]}
    update_route(route=route, changes={"conditions": conditions}, **BOB)
    parts = [{"key": "bill", "service": "billing", "path": "/bills/${path.id}"}]
    aggregate = create_route(name="profile", path="/api/v1/profile/{id}", aggregation={"parts": parts}, **BOB)
    checks = {"active": {"path": "/healthz"}, "passive": {}}
    secret = [{"header": "authorization", "value": "Bearer {secret://env/UPSTREAM_BILLING_TOKEN}"}]
    update_service(service=service, changes={"health_checks": checks, "upstream_credentials": secret}, **BOB)
    for version, circuit in (("v1", "closed"), ("v2", "open")):
        TargetStatus.objects.create(
            host="host",
            service=service,
            version=version,
            url=f"http://10.0.0.{version[1:]}:8000",
            is_probed=True,
            is_healthy=circuit == "closed",
            last_error="" if circuit == "closed" else "Connection refused",
            circuit=circuit,
            circuit_since=timezone.now(),
            seen_at=timezone.now(),
        )
    update_version(version=service.versions.get(version="v1"), changes={"lifecycle": "deprecated"}, **BOB)
    add_uses([Use(service.pk, "v1", application.pk, key.pk, 41, time.time(), "192.0.2.7")])
    plan = {"version": "v2", "steps": [{"percent": 30}, {"percent": 100}]}
    rollout = start_rollout(service=service, plan=plan, **BOB)
    admin = create_admin(username="ulf", email="ulf@example.com", roles=["KEY_ADMIN"], **BOB)
    number, seen_at = latest_revision().number, timezone.now() + timedelta(minutes=10)  # alive to the end of the test
    GatewayNode.objects.create(id="host/0", host="host", slot=0, applied_revision=number, seen_at=seen_at)
    limits = {"requests_per_hour": 1000, "burst_limit": 50}
    role, _ = EndUserRole.objects.get_or_create(
        name="passenger", defaults=limits
    )  # databases are emptied between tests
    user = create_user(username="ada@example.com", name="Ada", role="passenger", password="a long passphrase 17", **BOB)
    UserSession.objects.create(user=user, ends_at=seen_at, address="192.0.2.7", user_agent="Firefox on Linux")
    channel = create_channel(name="on call", medium="webhook", url="https://alerts.example.com/portcullis", **BOB)
    AlertMessage.objects.create(
        channel=channel,
        event="limit.violated",
        subject="lim_x",
        body={"data": {"limit": {"name": "checkout"}}},
        error="the endpoint answered 500",
    )
    limit = create_limit(name="checkout", rule={"limit": 100, "services": ["billing"], "alert": True}, **BOB)
    LimitUse.objects.create(limit_id=limit.pk, subject=f"key:{key.pk}", node="host", used=97, admitted=97, refused=12)
    rules = {"jwksUrl": "https://login.example.com/jwks", "audiences": ["orders"]}
    issuer = create_issuer(
        name="company login", issuer="https://login.example.com", application_id=application.pk, rules=rules, **BOB
    )
    event = record("session.login_failed", actor=BOB["actor"], source="panel", outcome="failure", details={"tries": 3})
    Invitation.objects.create(
        email="bob@example.com", roles=["KEY_ADMIN"], digest="0" * 64, expires_at=timezone.now() + timedelta(days=7)
    )
    GatewayNode.objects.update(applied_revision=latest_revision().number)  # it has what was made after it too
    return {
        "user": user,
        "limit": limit,
        "issuer": issuer,
        "role": role,
        "channel": channel,
        "event": event,
        "admin": admin,
        "admin role": AdminRole.objects.get(name="SUPPORT"),
        "service": service,
        "version": ServiceVersion.objects.get(version="v1"),
        "queue_route": queue_route,
        "application": application,
        "entry": entry,
        "key": key,
        "rollout": rollout,
        "route": route,
        "aggregate": aggregate,
        "task": make_task(queue_route, "failed", error="SMTP 550"),
    }


def pages_of(everything: dict[str, Any]) -> dict[str, str]:
    """Every screen of the panel, by name."""
    ids = {name: row.pk for name, row in everything.items()} | {"task": everything["task"].id}
    return {
        "home": "/",
        "my account": "/account",
        "users": "/users",
        "admin": f"/users/{ids['admin']}",
        "edit user": f"/users/{ids['admin']}/edit",
        "invite": "/invitations/new",
        "roles": "/roles",
        "admin role": f"/roles/{ids['admin role']}",
        "new role": "/roles/new",
        "services": "/services",
        "service": f"/services/{ids['service']}",
        "new service": "/services/new",
        "edit service": f"/services/{ids['service']}/edit",
        "new version": f"/services/{ids['service']}/versions/new",
        "edit version": f"/versions/{ids['version']}/edit",
        **{
            f"service policy {name}": f"/services/{ids['service']}/policies/{name}"
            for name in ("health_checks", "discovery", "concurrency", "caching", "upstream_tls", "upstream_credentials")
        },
        "new rollout": f"/services/{ids['service']}/rollouts/new",
        "rollout": f"/rollouts/{ids['rollout']}",
        "new target": f"/versions/{ids['version']}/targets/new",
        "routes": "/routes",
        "route": f"/routes/{ids['route']}",
        "new route": "/routes/new",
        "edit route": f"/routes/{ids['route']}/edit",
        "route policy conditions": f"/routes/{ids['route']}/policies/conditions",
        "route policy transformation": f"/routes/{ids['route']}/policies/transformation",
        "aggregate": f"/routes/{ids['aggregate']}",
        "edit aggregate": f"/routes/{ids['aggregate']}/edit",
        "gateway": "/gateway",
        "applications": "/applications",
        "application": f"/applications/{ids['application']}",
        "new application": "/applications/new",
        "edit application": f"/applications/{ids['application']}/edit",
        "new endpoint": f"/applications/{ids['application']}/whitelist/new",
        "edit endpoint": f"/whitelist/{ids['entry']}/edit",
        "keys": "/api-keys",
        "key": f"/api-keys/{ids['key']}",
        "new key": "/api-keys/new",
        "queue routes": "/queue-routes",
        "queue route": f"/queue-routes/{ids['queue_route']}",
        "tasks": "/tasks",
        "task": f"/tasks/{ids['task']}",
        "end users": "/end-users",
        "end user": f"/end-users/{ids['user']}",
        "new end user": "/end-users/new",
        "end-user roles": "/end-user-roles",
        "end-user role": f"/end-user-roles/{ids['role']}",
        "alert channels": "/alert-channels",
        "alert channel": f"/alert-channels/{ids['channel']}",
        "new alert channel": "/alert-channels/new",
        "limits": "/limits",
        "limit": f"/limits/{ids['limit']}",
        "new limit": "/limits/new",
        "edit limit": f"/limits/{ids['limit']}/edit",
        "issuers": "/token-issuers",
        "issuer": f"/token-issuers/{ids['issuer']}",
        "new issuer": "/token-issuers/new",
        "edit key": f"/api-keys/{ids['key']}/edit",
        "audit log": "/audit",
        "line of the audit log": f"/audit/{ids['event']}",
        "history": "/history",
        "revision": "/history/1",
        "nothing there": "/services/svc_none",
    }


def row_counts() -> dict[str, int]:
    return {model.__name__: model.objects.count() for model in (ServiceConfig, Route, Application, ApiKey)}


def errors_at(response: Any, field: str) -> str:
    """The sentences that stand at a field."""
    found = re.search(rf'<div id="id_{field}_error">(.*?)</div>', response.content.decode(), re.DOTALL)
    return text_in(found[1]) if found else ""
