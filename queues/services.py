"""Use-cases: queue routes.

Each is one revision (`core.revisions`): keyword-only, ``actor`` who, ``source`` panel, api or command, ``reason`` why.
``changes`` and ``fields`` go by the model's attribute names. They raise ClientFault: ``invalid_field`` with ``errors``
{field: [sentence, …]}, ``conflict``, ``not_found``, and ``stale_revision`` when ``if_revision`` is not the row's.
"""

import re
from collections.abc import Mapping
from typing import Any

from django.conf import settings

from access.services import forget_destination
from core.faults import ClientFault
from core.revisions import Actor, locked, revision
from core.validation import FieldErrors, assign, invalid, is_storable, service_name, taken
from queues.models import RESERVED_HEADERS, QueueRoute
from queues.signals import queue_route_naming

QUEUE_ROUTE_FIELDS = (
    "name", "description", "task_name", "queue", "arguments", "priority", "delay_s", "expires_s", "headers",
    "is_active",
)  # fmt: skip
TASK = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,199}")
QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,119}")
_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LONGEST_S = 366 * 86400


def create_queue_route(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> QueueRoute:
    """``fields``: QUEUE_ROUTE_FIELDS; ``name``, ``task_name`` and ``queue`` are required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        queue_route = QueueRoute()
        assign(queue_route, fields, QUEUE_ROUTE_FIELDS)
        _validate(queue_route)
        if QueueRoute._base_manager.filter(name=queue_route.name).exists():  # of whatever tenant: URLs are everybody's
            raise taken("name", f"A queue route named {queue_route.name!r} exists already.")
        queue_route_naming.send(QueueRoute, tenant_id=queue_route.tenant_id, name=queue_route.name)
        change.save_new(queue_route)
    return queue_route


def update_queue_route(
    *,
    queue_route: QueueRoute,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> QueueRoute:
    """``changes``: QUEUE_ROUTE_FIELDS. The name stays: applications' permissions are made of it."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(queue_route, if_revision)
        before = current.recorded()
        assign(current, changes, QUEUE_ROUTE_FIELDS)
        if current.name != before["name"]:
            raise invalid("name", "The name cannot change: applications use it. Make another queue route instead.")
        _validate(current)
        change.save(current, before)
    return current


def delete_queue_route(
    *, queue_route: QueueRoute, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    """Refused (``conflict``, ``routes``: names) while routes lead to it. Accepted tasks are still delivered."""
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(queue_route, if_revision)
        routes = list(current.routes.order_by("name").values_list("name", flat=True))
        if routes:
            raise ClientFault(
                "conflict",
                f"Routes lead to {current.name}: {', '.join(routes[:5])}. Delete them first.",
                members={"routes": routes},
            )
        change.delete(current)
        forget_destination(change, current.name)


def _validate(queue_route: QueueRoute) -> None:
    errors = FieldErrors()
    errors.check_columns(queue_route)
    errors.check("name", lambda: service_name(queue_route.name))
    if not errors.has("task_name") and not TASK.fullmatch(queue_route.task_name):
        errors.add("task_name", "A task name looks like email.send: letters, digits, dots, underscores.")
    if not errors.has("queue") and not QUEUE.fullmatch(queue_route.queue):
        errors.add("queue", "A queue's name has letters, digits, dots, colons, underscores and hyphens.")
    if queue_route.queue == settings.EVENTS_QUEUE:
        errors.add("queue", "This is the queue by which completions come back to the gateway.")
    for field in ("delay_s", "expires_s"):
        value = getattr(queue_route, field)
        if value is not None and not errors.has(field) and value > LONGEST_S:
            errors.add(field, f"At most {LONGEST_S} seconds (a year).")
    if queue_route.expires_s == 0:
        errors.add("expires_s", "A task that expires at once is never run: at least 1 second, or none.")
    errors.check("headers", lambda: _headers(queue_route.headers))
    errors.raise_any()


def _headers(headers: Any) -> None:
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ValueError("the headers are an object whose values are strings")
    if len(headers) > 32:
        raise ValueError("at most 32 headers are allowed")
    for name, value in headers.items():
        if not _HEADER.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no valid name of a header")
        if name.lower() in RESERVED_HEADERS:
            raise ValueError(f"{name!r} is a header that Celery's protocol or the gateway sets itself")
        if not is_storable(value) or len(value) > 1024:
            raise ValueError(f"the value of {name!r} is longer than 1024 characters or cannot be stored")
