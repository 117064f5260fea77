"""Whom a limit counts, in words: its buckets are called ``key:key_… ip:192.0.2.1``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.urls import reverse

from access.models import Application, EndUser
from keys.models import ApiKey

_PAGES = {"key": "panel:key", "application": "panel:application", "user": "panel:end_users_one"}
_WORDS = {"ip": "address"}


@dataclass(frozen=True, slots=True)
class Whose:
    """``kind`` is what a limit counts by; ``url`` is empty where there is no page."""

    kind: str
    name: str
    url: str = ""


def in_words(buckets: Iterable[str]) -> dict[str, list[Whose]]:
    """By bucket. What is gone, or was never ours, keeps the name that the bucket has."""
    parts = {bucket: [part.partition(":")[::2] for part in bucket.split(" ") if part] for bucket in buckets}
    names = _names({value for each in parts.values() for _, value in each})
    return {bucket: [_whose(kind, value, names) for kind, value in each] for bucket, each in parts.items()}


def _names(ids: set[str]) -> dict[str, str]:
    found = {each.pk: _key_name(each) for each in ApiKey.objects.filter(pk__in=ids).select_related("application")}
    found |= dict(Application.objects.filter(pk__in=ids).values_list("pk", "name"))
    return found | dict(EndUser.objects.filter(pk__in=ids).values_list("pk", "username"))


def _key_name(key: Any) -> str:
    return f"{key.name} of {key.application.name}" if key.application else key.name


def _whose(kind: str, value: str, names: Mapping[str, str]) -> Whose:
    page = _PAGES.get(kind)
    url = reverse(page, args=[value]) if page and value in names else ""
    return Whose(_WORDS.get(kind, kind), names.get(value, value), url)
