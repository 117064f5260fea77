"""What the events worker does for this app: it sends alerts. Celery tries again, with back-off and jitter."""

import logging
import smtplib
from typing import Any

import httpx
import orjson
from celery import Task, shared_task
from django.conf import settings
from django.core.mail import send_mail
from django.db import InterfaceError, OperationalError
from django.db.models import F
from django.utils import timezone

from access.addresses import EgressPolicy
from access.alerts import in_words, signed_fields
from access.models import AlertChannel, AlertMessage
from access.outgoing import client
from core.managed_secrets import host_references
from core.secret_references import SecretUnavailable, check_owner

logger = logging.getLogger("portcullis.alerts")

SEND = "gateway.send_alert"
_TIMEOUT_S = 10.0
_MOST_TRIES = 10  # within some hours: 2, 4, 8, … at most 3600 s
_LONGEST_ERROR = 300


class NotSent(Exception):
    """Trying again may help."""


class NeverSent(Exception):
    """Trying again will not help."""


@shared_task(
    name=SEND,
    bind=True,
    autoretry_for=(NotSent, OperationalError, InterfaceError),
    max_retries=_MOST_TRIES,
    retry_backoff=2,
    retry_backoff_max=3600,
    acks_late=True,
    ignore_result=True,
)
def send_alert(self: Task, message_id: str) -> None:
    message = AlertMessage.objects.select_related("channel").filter(pk=message_id).first()
    if message is None or message.sent_at is not None or message.failed_at is not None:
        return  # deleted with its channel, or handed over twice
    now = timezone.now()
    try:
        if not message.channel.is_active:
            raise NeverSent("the channel has been switched off")
        _send(message)
    except (NotSent, NeverSent) as failure:
        is_over = isinstance(failure, NeverSent) or self.request.retries >= _MOST_TRIES
        _note(
            message, error=str(failure)[:_LONGEST_ERROR], **({"failed_at": now} if is_over else {"published_at": now})
        )
        logger.warning("the alert %s to %s was not sent: %s", message.pk, message.channel.name, failure)
        if not is_over:
            raise
        return
    _note(message, error="", sent_at=now)


def _note(message: AlertMessage, **values: Any) -> None:
    AlertMessage.objects.filter(pk=message.pk).update(tries=F("tries") + 1, **values)


def _send(message: AlertMessage) -> None:
    if message.channel.medium == AlertChannel.Medium.WEBHOOK:
        _call(message)
    else:
        _mail(message)


def _call(message: AlertMessage) -> None:
    channel = message.channel
    body = orjson.dumps(message.body)
    fields = {"content-type": "application/json", "webhook-id": message.pk}
    if channel.secret:
        try:
            check_owner(channel.secret, str(channel.tenant_id))
        except ValueError as error:
            raise NeverSent(f"{channel.secret}: {error}") from error
        try:
            secret = host_references().resolve(channel.secret)
            fields |= signed_fields(message.pk, timezone.now(), body, secret)
        except SecretUnavailable as error:
            raise NotSent(f"{error.reference}: {error.reason}") from error
        except ValueError as error:
            raise NeverSent("the secret begins with whsec_ and is no base64") from error
    try:
        with (
            client(EgressPolicy(settings.EGRESS_ALLOW).permits, _TIMEOUT_S) as http,
            http.stream("POST", channel.url, content=body, headers=fields) as answer,
        ):
            status = answer.status_code  # its body, which may have no end, is nobody's business
    except httpx.HTTPError as error:
        raise NotSent(f"{type(error).__name__}: {error}") from error
    if status == 410:  # Standard Webhooks: nobody wants to hear any more
        raise NeverSent("the endpoint answered 410")
    if not 200 <= status < 300:
        raise NotSent(f"the endpoint answered {status}")


def _mail(message: AlertMessage) -> None:
    subject, text = in_words(message.body)
    try:
        send_mail(f"[{settings.SERVICE_NAME}] {subject}", text, None, message.channel.recipients)
    except (smtplib.SMTPException, OSError) as error:
        raise NotSent(f"the mail server: {type(error).__name__}") from error
