"""Alerts: who is told of refusals, when, and what happens to messages that cannot be sent."""

import base64
import hashlib
import hmac
import smtplib
import socket
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import orjson
import pytest
from celery.exceptions import Retry
from django.core import mail
from django.utils import timezone
from rest_framework.test import APIClient

from access.alerts import collect, create_channel, published, send_test, signed_fields, unsent
from access.models import AlertChannel, AlertMessage, LimitViolation, RateLimit
from access.tasks import send_alert
from core.models import AuditEvent
from core.revisions import Actor
from tests.admin_api import problem_of
from tests.gateway_process import GatewayFactory, eventually

BOB: dict[str, Any] = {"actor": Actor("user", "1", "bob"), "source": "api"}
CHANNELS = "/admin/access/alert-channels"


class Ear:
    """A webhook's endpoint that answers with ``status`` and keeps what it heard."""

    def __init__(self) -> None:
        ear = self
        self.status = 204
        self.is_endless = self.is_left = False
        self.heard: list[tuple[dict[str, str], bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                ear.heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(ear.status)
                self.send_header("content-length", "0" if not ear.is_endless else str(2**40))
                self.end_headers()
                with suppress(OSError):  # until nobody listens
                    while ear.is_endless:
                        self.wfile.write(b"x" * 65_536)
                ear.is_left = True

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/alerts"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    heard = Ear()
    yield heard
    heard.close()


@pytest.fixture
def loopback(settings: Any) -> None:
    settings.EGRESS_ALLOW = ["127.0.0.0/8"]


def channel(**fields: Any) -> AlertChannel:
    defaults = {"name": "on call", "medium": "webhook", "url": "https://alerts.example.com/x"}
    return create_channel(**{**defaults, **fields}, **BOB)


def limit(name: str, *, alert: bool = True) -> RateLimit:
    return RateLimit.objects.create(name=name, rule={"limit": 10, "alert": alert})


def refused(row: RateLimit, subject: str, count: int, at: datetime) -> None:
    minute = at.replace(second=0, microsecond=0)
    LimitViolation.objects.create(
        minute=minute, limit_id=row.pk, limit_name=row.name, subject=subject, refused=count, last_at=at
    )


# --- when ----------------------------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_a_channel_is_told_once_of_each_limit_and_then_not_before_its_interval_is_over() -> None:
    now = timezone.now()
    on_call = channel(min_interval_s=300)
    AlertChannel.objects.update(created_at=now - timedelta(hours=2))
    orders, silent = limit("orders"), limit("silent", alert=False)
    refused(orders, "key_a", 7, now - timedelta(minutes=5))
    refused(orders, "key_b", 70, now - timedelta(minutes=4))
    refused(silent, "key_a", 9, now)
    (told,) = collect(now)
    assert told.channel_id == on_call.pk
    assert told.body["data"]["limit"] == {"id": orders.pk, "name": "orders"}
    assert told.body["data"]["refused"] == 77
    assert [each["subject"] for each in told.body["data"]["subjects"]] == ["key_b", "key_a"]
    assert collect(now) == []  # nothing new
    refused(orders, "key_c", 1, now + timedelta(seconds=10))
    assert collect(now + timedelta(seconds=20)) == []  # too soon
    (again,) = collect(now + timedelta(seconds=301))
    assert again.body["data"]["refused"] == 1


@pytest.mark.django_db
def test_what_was_before_a_channel_and_what_is_long_past_is_not_told() -> None:
    now = timezone.now()
    orders = limit("orders")
    refused(orders, "key_a", 7, now - timedelta(minutes=5))
    channel()
    assert collect(now) == []
    AlertChannel.objects.update(created_at=now - timedelta(days=9))
    LimitViolation.objects.update(last_at=now - timedelta(hours=3))
    assert collect(now) == []


@pytest.mark.django_db
def test_a_message_is_handed_over_again_only_when_its_taker_was_not_heard_of_for_long() -> None:
    message = send_test(channel=channel(), **BOB)
    now = timezone.now()
    assert unsent(now, timedelta(hours=1)) == [message.pk]
    published([message.pk], now)
    assert unsent(now, timedelta(hours=1)) == []
    assert unsent(now + timedelta(hours=2), timedelta(hours=1)) == [message.pk]


# --- sending -------------------------------------------------------------------------------------------------------
@pytest.mark.django_db
def test_a_webhook_is_signed_as_standard_webhooks_are(
    ear: Ear, loopback: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = b"a webhook key of 24 byte"
    monkeypatch.setenv("UPSTREAM_ALERTS", "whsec_" + base64.b64encode(key).decode())
    message = send_test(channel=channel(url=ear.url, secret="secret://env/UPSTREAM_ALERTS"), **BOB)
    send_alert.apply([message.pk], throw=True)
    ((fields, body),) = ear.heard
    assert orjson.loads(body)["type"] == "test"
    signed = f"{message.pk}.{fields['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert fields["webhook-signature"] == f"v1,{expected}"
    assert fields["webhook-id"] == message.pk
    message.refresh_from_db()
    assert (message.tries, message.error) == (1, "")
    assert message.sent_at is not None
    send_alert.apply([message.pk], throw=True)  # handed over twice
    assert len(ear.heard) == 1


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    at = datetime.fromtimestamp(1614265330, tz=timezone.get_default_timezone())
    fields = signed_fields(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", at, b'{"test": 2432232314}', b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    )
    assert fields["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.django_db
@pytest.mark.parametrize(("status", "is_over"), [(500, False), (302, False), (410, True)])
def test_an_endpoint_that_fails_is_tried_again_and_one_that_is_gone_is_not(
    ear: Ear, loopback: None, status: int, is_over: bool
) -> None:
    ear.status = status
    message = send_test(channel=channel(url=ear.url), **BOB)
    if is_over:
        send_alert.apply([message.pk], throw=True)
    else:
        with pytest.raises(Retry):
            send_alert.apply([message.pk], throw=True, retries=0).get()
    message.refresh_from_db()
    assert (message.failed_at is not None) == is_over
    assert str(status) in message.error
    assert message.sent_at is None


@pytest.mark.django_db
def test_an_answer_without_end_holds_nobody_up(ear: Ear, loopback: None) -> None:
    ear.status, ear.is_endless = 200, True
    message = send_test(channel=channel(url=ear.url), **BOB)
    try:
        send_alert.apply([message.pk], throw=True)
        message.refresh_from_db()
        assert message.sent_at is not None
        eventually(lambda: ear.is_left, what="the end of the connection")
    finally:
        ear.is_endless = False


@pytest.mark.django_db
def test_no_webhook_goes_where_the_egress_policy_does_not_permit(ear: Ear, settings: Any) -> None:
    settings.EGRESS_ALLOW = []
    message = send_test(channel=channel(url=ear.url), **BOB)
    with pytest.raises(Retry):
        send_alert.apply([message.pk], throw=True).get()
    message.refresh_from_db()
    assert "EGRESS_ALLOW" in message.error
    assert not ear.heard


@pytest.mark.django_db
def test_an_e_mail_says_in_words_what_was_refused(mailoutbox: list[Any]) -> None:
    now = timezone.now()
    channel(medium="email", url="", recipients=["ops@example.com"])
    AlertChannel.objects.update(created_at=now - timedelta(hours=2))
    refused(limit("orders"), "key_a", 7, now)
    (message,) = collect(now + timedelta(seconds=1))
    send_alert.apply([message.pk], throw=True)
    (sent,) = mail.outbox
    assert sent.to == ["ops@example.com"]
    assert sent.subject.endswith("Limit orders refused 7 requests")
    assert "key_a" in sent.body


@pytest.mark.django_db
def test_a_mail_server_that_is_away_is_tried_again(settings: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = free.getsockname()
        message = send_test(channel=channel(medium="email", url="", recipients=["ops@example.com"]), **BOB)
        with pytest.raises((Retry, smtplib.SMTPException)):
            send_alert.apply([message.pk], throw=True).get()
    message.refresh_from_db()
    assert "mail server" in message.error


# --- API -----------------------------------------------------------------------------------------------------------
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "https://user:pw@x.example"}, "url"),
        ({"url": "https://x.example:99999"}, "url"),
        ({"recipients": ["a@example.com"]}, "recipients"),
        ({"medium": "email"}, "recipients"),
        ({"medium": "email", "url": "", "recipients": ["nobody"]}, "recipients"),
        ({"medium": "pigeon"}, "medium"),
        ({"secret": "my secret"}, "secret"),
        ({"events": ["moon.rises"]}, "events"),
        ({"minIntervalS": 10**9}, "minIntervalS"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_a_channel_that_makes_no_sense_is_refused_at_its_field(
    api: APIClient, change: dict[str, Any], field: str
) -> None:
    body = {"name": "x", "medium": "webhook", "url": "https://alerts.example.com", **change}
    problem = problem_of(api.post(CHANNELS, body), 422, "invalid_field")
    assert any(name.startswith(field) for name in problem["errors"])


@pytest.mark.django_db
def test_channels_are_made_changed_tested_and_deleted(api: APIClient) -> None:
    made = api.post(CHANNELS, {"name": "x", "medium": "webhook", "url": "https://alerts.example.com"}).json()
    where = f"{CHANNELS}/{made['id']}"
    problem_of(api.post(CHANNELS, {"name": "x", "medium": "webhook", "url": "https://a.example"}), 409, "conflict")
    assert api.patch(where, {"isActive": False}).json()["isActive"] is False
    assert api.post(f"{where}/test").status_code == 202
    (message,) = api.get(f"{where}/messages").json()["messages"]
    assert (message["event"], message["sentAt"]) == ("test", None)
    assert api.delete(where).status_code == 204
    problem_of(api.get(f"{where}/messages"), 404, "not_found")
    problem_of(api.post(f"{where}/test"), 404, "not_found")
    tested = AuditEvent.objects.get(action="alert_channel.tested")
    assert (tested.source, tested.object_name, tested.outcome) == ("api", "x", "success")
    assert tested.actor_name
    assert not AlertMessage.objects.exists()


# --- a whole gateway -----------------------------------------------------------------------------------------------
def test_a_test_message_reaches_its_webhook_through_agent_broker_and_events_worker(
    start_gateway: GatewayFactory, ear: Ear
) -> None:
    with start_gateway().admin() as admin:
        made = admin.post(CHANNELS, json={"name": "x", "medium": "webhook", "url": ear.url}).json()
        assert admin.post(f"{CHANNELS}/{made['id']}/test").status_code == 202
        eventually(lambda: ear.heard, 60, "the webhook")
        assert orjson.loads(ear.heard[0][1])["type"] == "test"
        where = f"{CHANNELS}/{made['id']}/messages"
        eventually(lambda: admin.get(where).json()["messages"][0]["sentAt"], 30, "the note that it was sent")
