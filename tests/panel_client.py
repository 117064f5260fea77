"""What tests of the panel share: a signed-in client, configuration to look at, and what an answer says."""

import re
from html import unescape
from typing import Any

from django.contrib.auth.models import User
from django.test import Client

from access.models import Application
from access.services import create_application, create_entry
from core.models import ConfigRevision, GatewayNode
from core.revisions import Actor
from keys.models import ApiKey
from keys.services import create_key
from queues.models import QueuedTask, QueueRoute
from queues.services import create_queue_route
from routing.models import Route, ServiceConfig, ServiceVersion
from routing.services import create_route, create_service, create_version

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
    GatewayNode.objects.create(id="host/0", host="host", slot=0, applied_revision=latest_revision().number)
    return {
        "service": service,
        "version": ServiceVersion.objects.get(version="v1"),
        "queue_route": queue_route,
        "application": application,
        "entry": entry,
        "key": key,
        "route": route,
        "task": make_task(queue_route, "failed", error="SMTP 550"),
    }


def pages_of(everything: dict[str, Any]) -> dict[str, str]:
    """Every screen of the panel, by name."""
    ids = {name: row.pk for name, row in everything.items()} | {"task": everything["task"].id}
    return {
        "home": "/",
        "services": "/services",
        "service": f"/services/{ids['service']}",
        "new service": "/services/new",
        "edit service": f"/services/{ids['service']}/edit",
        "new version": f"/services/{ids['service']}/versions/new",
        "edit version": f"/versions/{ids['version']}/edit",
        "new target": f"/versions/{ids['version']}/targets/new",
        "routes": "/routes",
        "route": f"/routes/{ids['route']}",
        "new route": "/routes/new",
        "edit route": f"/routes/{ids['route']}/edit",
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
