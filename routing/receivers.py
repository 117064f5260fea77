"""Answers to what the apps below ask by signal."""

from typing import Any

from django.dispatch import receiver

from core.validation import taken
from queues.signals import queue_route_naming
from routing.models import ServiceConfig


@receiver(queue_route_naming)
def refuse_name_of_a_service(sender: object, tenant_id: str, name: str, **_: Any) -> None:
    if ServiceConfig._base_manager.filter(name=name).exists():  # of whatever tenant: URLs are everybody's
        raise taken("name", f"A service is named {name!r}: services and queue routes share one set of names.")
