"""The demo's configuration, made once through the same use-cases as the panel and the admin API.

What an admin has changed since stays changed, but for the addresses of the demo services, which follow DEMO_PORT.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model

from access.administration.users import ensure_account
from access.end_users.accounts import create_user, reset_password
from access.models import Application, EndUser
from access.services import create_application, create_entry
from core.revisions import Actor, revision
from keys.models import ApiKey
from keys.services import create_admin_key, create_key, find_live_key
from keys.setup import mark_set_up
from queues.models import QueueRoute
from queues.services import create_queue_route
from routing.models import Route, ServiceConfig, ServiceVersion
from routing.services import create_route, create_service, create_version, update_service, update_version

ADMIN_USER = "admin"
END_USER = "ada@example.com"
APPLICATION = "storefront"
PIPELINE_WEIGHTS = {"v1": 80, "v2": 20}
QUEUES = ("email", "sms", "analytics", "reports")
_BY: dict[str, Any] = {"actor": Actor("demo", name="demo"), "source": "command"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a person needs to try the demo. The keys are the credentials themselves."""

    admin_password: str
    admin_key: str
    client_key: str
    end_user_password: str


def seed(urls: Mapping[str, str], former: Credentials | None) -> Credentials:
    """``urls`` of auth, monolith and pipeline, without a final slash; ``former``: what an earlier run has returned,
    kept as far as it is still valid."""
    if not get_user_model().objects.filter(username=ADMIN_USER).exists():
        former = None
    with revision(**_BY, reason="Seed the demo"):
        if former is None:
            _services(urls)
            _queue_routes()
            _routes()
        _follow(urls)
        application = _application()
    return Credentials(*_admin(former), _client_key(application, former), _end_user(former))


def _follow(urls: Mapping[str, str]) -> None:
    """The services have moved since an earlier run."""
    for name, url in (("auth-api", urls["auth"]), ("monolith", urls["monolith"])):
        for service in ServiceConfig.objects.filter(name=name):
            update_service(**_BY, service=service, changes={"default_url": url})
    for version in ServiceVersion.objects.filter(service__name="pipeline", version__in=PIPELINE_WEIGHTS):
        update_version(**_BY, version=version, changes={"url": f"{urls['pipeline']}/{version.version}"})


def _services(urls: Mapping[str, str]) -> None:
    _service(
        "auth-api",
        description="Logins. Reached at /api/v1/auth/…, where the route rewrites to /api/auth/….",
        default_url=urls["auth"],
        health_endpoint="/api/auth/status",
    )
    _service(
        "monolith",
        description="Products and orders, reached by its implicit route /api/v1/monolith/….",
        default_url=urls["monolith"],
        health_endpoint="/health",
    )
    pipeline = _service(
        "pipeline",
        description="Two versions: a client stays on the one that its key falls to, or asks with X-API-Version.",
        current_version="v1",
        health_endpoint="/health",
    )
    for version, weight in PIPELINE_WEIGHTS.items():
        if not pipeline.versions.filter(version=version).exists():
            url = f"{urls['pipeline']}/{version}"
            create_version(**_BY, service=pipeline, version=version, weight=weight, url=url)


def _service(name: str, **fields: Any) -> ServiceConfig:
    service = ServiceConfig.objects.filter(name=name).first()
    return service or create_service(**_BY, name=name, **fields)


def _queue_routes() -> None:
    members, body = QueueRoute.Arguments.MEMBERS, QueueRoute.Arguments.BODY
    for name, task, arguments in (
        ("email", "email.send", members),
        ("sms", "sms.send", members),
        ("analytics", "analytics.track", body),
        ("reports", "reports.broken", members),
    ):
        if not QueueRoute.objects.filter(name=name).exists():
            create_queue_route(**_BY, name=name, task_name=task, queue=name, arguments=arguments)


def _routes() -> None:
    _route("auth", "/api/v1/auth/*", service="auth-api", strip_prefix="/api/v1/auth", replace_prefix="/api/auth")
    for name, path, queue_route in (
        ("send-email", "/api/v1/notifications/email", "email"),
        ("send-sms", "/api/v1/notifications/sms", "sms"),
        ("track-event", "/api/v1/analytics/events", "analytics"),
        ("make-report", "/api/v1/reports", "reports"),
    ):
        _route(name, path, queue_route=queue_route, methods=["POST"])


def _route(name: str, path: str, *, service: str = "", queue_route: str = "", **fields: Any) -> None:
    if Route.objects.filter(name=name).exists():
        return
    if service:
        fields["service"] = ServiceConfig.objects.get(name=service)
    else:
        fields["queue_route"] = QueueRoute.objects.get(name=queue_route)
    create_route(**_BY, name=name, path=path, **fields)


def _application() -> Application:
    application = Application.objects.filter(name=APPLICATION).first()
    if application is not None:
        return application
    application = create_application(
        **_BY,
        name=APPLICATION,
        description="A web shop. Its whitelist says what its keys may call; one entry needs no key.",
        allowed_services=["auth-api", "monolith", "pipeline", *QUEUES],
    )
    entries: tuple[tuple[str, list[str], dict[str, Any]], ...] = (
        ("/api/v1/auth/status", ["GET"], {"is_public": True, "rate_limit": 60}),
        ("/api/v1/auth/*", ["GET", "POST"], {}),
        ("/api/v1/monolith/*", ["GET", "POST"], {}),
        ("/api/v1/pipeline/*", ["GET", "POST"], {}),
        ("/api/v1/notifications/*", ["POST"], {"rate_limit": 60}),
        ("/api/v1/analytics/events", ["POST"], {}),
        ("/api/v1/reports", ["POST"], {}),
    )
    for path, methods, more in entries:
        create_entry(**_BY, application=application, endpoint_path=path, allowed_methods=methods, **more)
    return application


def _admin(former: Credentials | None) -> tuple[str, str]:
    """Password and admin key of the demo's admin. A password that was changed in the panel is left alone."""
    users = get_user_model().objects
    user = users.filter(username=ADMIN_USER).first()
    password = former.admin_password if former is not None and user is not None else secrets.token_urlsafe(12)
    if user is None:
        user = users.create_superuser(ADMIN_USER, "admin@example.com", password)
        mark_set_up()
        ensure_account(**_BY, user=user)
    elif former is None:  # nobody knows the old one any more
        user.set_password(password)
        user.save(update_fields=["password"])
    if former is not None and find_live_key(former.admin_key, admin=True) is not None:
        return password, former.admin_key
    return password, create_admin_key(**_BY, user=user, name="Demo admin key").key


def _end_user(former: Credentials | None) -> str:
    """The password of the demo's end user, a passenger."""
    user = EndUser.objects.filter(username=END_USER).first()
    if user is not None and former is not None and former.end_user_password:
        return former.end_user_password
    password = secrets.token_urlsafe(12)
    if user is None:
        create_user(**_BY, username=END_USER, name="Ada", role="passenger", password=password)
    else:  # nobody knows the old one any more
        reset_password(**_BY, user=user, password=password, must_change=False)
    return password


def _client_key(application: Application, former: Credentials | None) -> str:
    if former is not None:
        row = find_live_key(former.client_key, admin=False)
        if row is not None and row.application_id == application.pk:
            return former.client_key
    number = ApiKey.objects.filter(application=application).count() + 1
    return create_key(**_BY, application=application, name=f"Demo key {number}").key
