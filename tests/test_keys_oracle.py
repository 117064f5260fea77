"""Whatever is wrong with a key, it costs the same and the answer is the same, byte for byte (rule 17)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

import keys.recognition
import keys.services
from core.revisions import Actor
from keys.authentication import FAILURES
from keys.credential import Digester, _checksum, generate
from keys.finding import NEED
from keys.models import ApiKey
from keys.public_api import VALIDATIONS
from keys.services import create_key
from tests.admin_api import admin_with_key

pytestmark = pytest.mark.django_db
BY: dict[str, Any] = {"actor": Actor("command"), "source": "command"}


@dataclass
class Work:
    """What was done for a key."""

    digests: int = 0
    argon2: int = 0
    queries: list[str] = field(default_factory=list)


@pytest.fixture(autouse=True)
def forget() -> None:
    for memory in (FAILURES, VALIDATIONS):
        memory.clear()
    NEED.forget()


def wrong_secret(key: str) -> str:
    """Well formed, with the same lookup id."""
    unchecked = key[:13] + generate("km_").key[13:45]
    return unchecked + _checksum(unchecked.encode())


@pytest.fixture
def wrong() -> dict[str, str]:
    """Keys that open nothing, by why that is."""
    reasons = ("revoked", "suspended", "expired", "of an inactive application")
    made = {reason: create_key(name=reason, owner=f"app {reason}", **BY) for reason in reasons}
    ApiKey.objects.filter(pk=made["revoked"].row.pk).update(status="revoked")
    ApiKey.objects.filter(pk=made["suspended"].row.pk).update(status="suspended")
    ApiKey.objects.filter(pk=made["expired"].row.pk).update(expires_at="2020-01-01T00:00:00Z")
    application = made["of an inactive application"].row.application
    assert application is not None
    application.is_active = False
    application.save()
    near = made["revoked"].key
    return {
        "unknown": generate("km_").key,
        "wrong": wrong_secret(near),
        **{reason: issued.key for reason, issued in made.items()},
    }


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Work]]:
    work = Work()

    class Counted(Digester):
        def __call__(self, key: bytes) -> bytes:
            work.digests += 1
            return super().__call__(key)

    real = keys.recognition.verifies

    def verifies(hash: str, key: str) -> bool:
        work.argon2 += 1
        return real(hash, key)

    monkeypatch.setattr(keys.services, "Digester", Counted)
    monkeypatch.setattr(keys.recognition, "verifies", verifies)

    def measure(call: Callable[[], Any]) -> tuple[Any, Work]:
        work.digests = work.argon2 = 0
        with CaptureQueriesContext(connection) as captured:
            answer = call()
        statements = [query["sql"].partition("WHERE")[0] for query in captured.captured_queries]
        return answer, Work(work.digests, work.argon2, statements)

    return measure


def told(answer: Any) -> tuple[Any, ...]:
    fields = sorted((name, value) for name, value in answer.headers.items() if name != "X-Request-ID")
    content = answer.content.replace(answer.headers["X-Request-ID"].encode(), b"")
    return answer.status_code, fields, content


@pytest.mark.parametrize("are_there_others", [False, True], ids=["all known", "some of another pepper"])
@pytest.mark.parametrize("asked", ["validate", "admin API"])
def test_no_wrong_key_is_told_from_another(
    wrong: dict[str, str], measured: Any, asked: str, are_there_others: bool
) -> None:
    if asked == "validate":
        wrong |= {"of an admin": admin_with_key()[1]}
    if are_there_others:
        ApiKey.objects.create(
            name="other", owner="x", application=ApiKey.objects.exclude(application=None)[0].application,
            lookup_id="0" * 10, digest="0" * 64, hash="x", pepper_id="f" * 16,
        )  # fmt: skip
    NEED.is_there()  # asked of the database now and then, for whatever key comes
    seen = set()
    for what, key in wrong.items():
        client = APIClient()
        if asked == "validate":
            answer, work = measured(lambda client=client, key=key: client.post("/validate", {"key": key}))
        else:
            answer, work = measured(lambda client=client, key=key: client.get("/keys", HTTP_X_API_KEY=key))
        assert work.argon2 == (1 if are_there_others else 0), what
        seen.add((str(told(answer)), work.digests, work.argon2, str(work.queries)))
    assert len(seen) == 1, seen
