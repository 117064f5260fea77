"""Random changes of the configuration, as the use-cases make them: one revision each, every row recorded."""

import random
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.utils import timezone

from access.models import Application, EndpointWhitelist
from core.models import ConfigRow
from core.revisions import Actor, RevisionWriter, revision
from keys.models import ApiKey
from queues.models import QueueRoute
from routing.models import Route, ServiceConfig, ServiceTarget, ServiceVersion

ACTOR = Actor("command", name="test")
_PATHS = ["/api/a", "/api/a/*", "/api/{x}/x", "/api/*/x/y", "/api/b/x", "/api/v1/mail/*"]
_MODELS: tuple[type[ConfigRow], ...] = (
    *(ServiceConfig, ServiceVersion, ServiceTarget, Route, QueueRoute, Application, EndpointWhitelist, ApiKey),
)


class RandomConfig:
    """The same seed makes the same changes, but for the ids."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._makers: dict[type[ConfigRow], Callable[[], ConfigRow | None]] = {
            ServiceConfig: self._service,
            ServiceVersion: self._version,
            ServiceTarget: self._target,
            Route: self._route,
            QueueRoute: self._queue_route,
            Application: self._application,
            EndpointWhitelist: self._entry,
            ApiKey: self._key,
        }

    def change(self) -> None:
        """One revision of one to three changes."""
        with revision(actor=ACTOR, source="command") as change:
            for _ in range(self._random.randint(1, 3)):
                model = self._random.choice(_MODELS)
                what = self._random.choices(("create", "update", "delete"), (5, 4, 2))[0]
                if what == "create":
                    row = self._makers[model]()
                    if row is not None and not _exists(row):
                        change.save_new(row)
                elif (row := self._any(model)) is not None:
                    self._update(change, row) if what == "update" else delete(change, row)

    def _any(self, model: type[ConfigRow]) -> Any:
        return self._random.choice(list(model._default_manager.order_by("created_at", "pk")) or [None])

    def _name(self) -> str:
        return f"{self._random.choice(('orders', 'users', 'mail'))}-{self._random.randint(1, 5)}"

    def _service(self) -> ServiceConfig:
        return ServiceConfig(name=self._name(), default_url="http://10.0.0.1:8000")

    def _version(self) -> ServiceVersion | None:
        service = self._any(ServiceConfig)
        version = f"v{self._random.randint(1, 3)}"
        return service and ServiceVersion(service=service, version=version, url="http://10.0.0.2/base", weight=5)

    def _target(self) -> ServiceTarget | None:
        version = self._any(ServiceVersion)
        return version and ServiceTarget(version=version, url=f"http://10.0.0.{self._random.randint(3, 6)}")

    def _route(self) -> Route | None:
        destination = self._any(self._random.choice((ServiceConfig, QueueRoute)))
        if destination is None:
            return None
        leads_to = {"service" if isinstance(destination, ServiceConfig) else "queue_route": destination}
        name, path = f"route {self._random.randint(1, 8)}", self._random.choice(_PATHS)
        return Route(name=name, path=path, hosts=self._random.choice([[], ["api.example.com"]]), **leads_to)

    def _queue_route(self) -> QueueRoute:
        return QueueRoute(name=self._name() + "-queue", task_name="mail.send", queue="mail")

    def _application(self) -> Application:
        return Application(name=self._name(), allowed_services=["*"])

    def _entry(self) -> EndpointWhitelist | None:
        application = self._any(Application)
        path, is_public = self._random.choice(_PATHS), self._random.random() < 0.4
        return application and EndpointWhitelist(application=application, endpoint_path=path, is_public=is_public)

    def _key(self) -> ApiKey | None:
        application = self._any(Application)
        return application and new_key(application)

    def _update(self, change: RevisionWriter, row: Any) -> None:
        before = row.recorded()
        if isinstance(row, ServiceConfig):
            row.name, row.implicit_route, row.is_active = row.name + "x", self._flip(), self._flip()
        elif isinstance(row, Route):
            row.path, row.priority, row.is_active = self._random.choice(_PATHS), 3, self._flip()
            row.service, row.queue_route = self._any(ServiceConfig), None
            if row.service is None:
                return
        elif isinstance(row, ApiKey):
            row.status = self._random.choice(ApiKey.Status.values)
            row.expires_at = self._random.choice([None, timezone.now() + timedelta(days=1), timezone.now()])
            row.digest = secrets.token_hex(32) if self._flip() else row.digest
        elif isinstance(row, EndpointWhitelist):
            row.is_public, row.rate_limit = self._flip(), 7
        elif isinstance(row, Application):
            row.rate_limit, row.is_active = self._random.choice([None, 5]), self._flip()
        elif isinstance(row, ServiceVersion):
            row.weight, row.is_active = self._random.randint(0, 3), self._flip()
        else:
            row.is_active = not row.is_active
        if not _exists(row):
            change.save(row, before)

    def _flip(self) -> bool:
        return self._random.random() < 0.6


def new_key(application: Application, **fields: Any) -> ApiKey:
    """Not saved. Its hash opens nothing."""
    lookup_id, digest = secrets.token_hex(5), secrets.token_hex(32)
    return ApiKey(application=application, name="k", owner="o", lookup_id=lookup_id, hash="-", digest=digest, **fields)


def delete(change: RevisionWriter, row: ConfigRow) -> None:
    """With all that hangs on it, each recorded."""
    children: list[Any] = []
    if isinstance(row, ServiceConfig):
        children = [*row.routes.all(), *row.versions.all()]
    elif isinstance(row, ServiceVersion):
        children = list(row.targets.all())
    elif isinstance(row, QueueRoute):
        children = list(row.routes.all())
    elif isinstance(row, Application):
        children = [*row.whitelist.all(), *row.keys.all()]
    for child in children:
        delete(change, child)
    change.delete(row)


def _exists(row: Any) -> bool:
    """Whether another row has what must be unique."""
    others = type(row)._default_manager.exclude(pk=row.pk)
    if isinstance(row, ServiceVersion):
        return bool(others.filter(service=row.service, version=row.version).exists())
    if isinstance(row, ServiceTarget):
        return bool(others.filter(version=row.version, url=row.url).exists())
    if isinstance(row, EndpointWhitelist):
        return bool(others.filter(application=row.application, endpoint_path=row.endpoint_path).exists())
    if isinstance(row, ApiKey):
        return False
    return bool(others.filter(name=row.name).exists())
