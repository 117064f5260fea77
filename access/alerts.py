"""A27: who is told when limits refuse, and when (alert channels, and the messages that they are owed).

A message is a row before anybody tries to send it, so that none is lost; the events worker sends it (`access.tasks`).
Messages about one limit to one channel are at least ``min_interval_s`` apart; what happens meanwhile is in the next.
"""

import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.db.models import Max, Q
from django.utils import timezone

from access.models import AlertChannel, AlertMessage, LimitViolation, RateLimit
from access.outgoing import check_url
from core.audit import record
from core.revisions import Actor, locked, revision
from core.secret_references import check_reference
from core.validation import FieldErrors, assign, taken

CHANNEL_FIELDS = ("name", "medium", "url", "secret", "recipients", "events", "min_interval_s", "is_active")
LIMIT_VIOLATED, TEST = "limit.violated", "test"
EVENTS = (LIMIT_VIOLATED,)
MOST_SUBJECTS = 10  # in one message
_MOST_RECIPIENTS = 50
LONGEST_INTERVAL_S = 7 * 86_400
_LOOK_BACK = timedelta(hours=1)  # at the first message of a channel
_KEPT_SECRET = "whsec_"  # noqa: S105  # how Standard Webhooks writes secrets


# --- channels ------------------------------------------------------------------------------------------------------
def create_channel(*, actor: Actor, source: str, reason: str = "", **fields: Any) -> AlertChannel:
    """``fields``: CHANNEL_FIELDS; ``name`` and ``medium`` are required."""
    with revision(actor=actor, source=source, reason=reason) as change:
        channel = AlertChannel(tenant_id=actor.tenant_id)
        assign(channel, fields, CHANNEL_FIELDS)
        _validate(channel)
        change.save_new(channel)
    return channel


def update_channel(
    *,
    channel: AlertChannel,
    changes: Mapping[str, Any],
    if_revision: int | None = None,
    actor: Actor,
    source: str,
    reason: str = "",
) -> AlertChannel:
    with revision(actor=actor, source=source, reason=reason) as change:
        current = locked(channel, if_revision)
        before = current.recorded()
        assign(current, changes, CHANNEL_FIELDS)
        _validate(current)
        change.save(current, before)
    return current


def delete_channel(
    *, channel: AlertChannel, if_revision: int | None = None, actor: Actor, source: str, reason: str = ""
) -> None:
    with revision(actor=actor, source=source, reason=reason) as change:
        change.delete(locked(channel, if_revision))


def send_test(*, channel: AlertChannel, actor: Actor, source: str) -> AlertMessage:
    """A message that says only that the channel works."""
    body = document(TEST, timezone.now(), {"channel": channel.name})
    with transaction.atomic():
        message = AlertMessage.objects.create(channel=channel, event=TEST, subject=TEST, body=body)
        record(
            "alert_channel.tested",
            actor=actor,
            source=source,
            object_kind=AlertChannel.kind,
            object_id=channel.pk,
            object_name=channel.name,
            details={"message": message.pk},
        )
    return message


def _validate(channel: AlertChannel) -> None:
    errors = FieldErrors()
    errors.check_columns(channel)
    if channel.medium == AlertChannel.Medium.WEBHOOK:
        errors.check("url", lambda: check_url(channel.url))
        if channel.recipients:
            errors.add("recipients", "A webhook has a url and no recipients.")
        if channel.secret:
            errors.check("secret", lambda: check_reference(channel.secret))
    else:
        errors.check("recipients", lambda: _check_recipients(channel.recipients))
        if channel.url or channel.secret:
            errors.add(
                "url" if channel.url else "secret", "An e-mail channel has recipients and neither url nor secret."
            )
    if not isinstance(channel.events, list) or any(each not in EVENTS for each in channel.events):
        errors.add("events", f"A list of these: {', '.join(EVENTS)}. Empty: all of them.")
    if not errors.has("min_interval_s") and channel.min_interval_s > LONGEST_INTERVAL_S:
        errors.add("min_interval_s", f"At most {LONGEST_INTERVAL_S} seconds, which is a week.")
    errors.raise_any()
    same = AlertChannel.objects.filter(tenant_id=channel.tenant_id, name=channel.name)
    if same.exclude(pk=channel.pk).exists():
        raise taken("name", f"An alert channel named {channel.name!r} exists already.")


def _check_recipients(recipients: object) -> None:
    if not isinstance(recipients, list) or not 1 <= len(recipients) <= _MOST_RECIPIENTS:
        raise ValueError(f"this is a list of 1 to {_MOST_RECIPIENTS} e-mail addresses")
    for each in recipients:
        try:
            validate_email(each)
        except (ValidationError, TypeError):
            raise ValueError(f"{str(each)[:100]!r} is no e-mail address") from None


# --- what is due ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Violations:
    """Refusals by one limit since ``since``."""

    limit_id: str
    limit_name: str
    refused: int
    since: datetime
    subjects: list[dict[str, Any]]  # the most refused first: subject, application, address, refused, lastAt


def collect(now: datetime) -> list[AlertMessage]:
    """Write down the messages that are due now. One caller at a time (`core.locks.sole_holder`)."""
    made = []
    for channel in AlertChannel.objects.filter(is_active=True, medium__in=AlertChannel.Medium.values):
        if channel.events and LIMIT_VIOLATED not in channel.events:
            continue
        for limit_id, since in _due(channel, now).items():
            found = _violations(limit_id, since)
            if found is not None:
                made.append(_message(channel, found, now))
    return AlertMessage.objects.bulk_create(made)


def _due(channel: AlertChannel, now: datetime) -> dict[str, datetime]:
    """The limits that refused somebody since the channel was last told of them, and since when to count."""
    told = dict(
        AlertMessage.objects.filter(channel=channel, event=LIMIT_VIOLATED)
        .values_list("subject")
        .annotate(at=Max("created_at"))
    )
    alerting = [row.pk for row in RateLimit.objects.filter(tenant_id=channel.tenant_id) if row.rule.get("alert")]
    earliest = now - _LOOK_BACK
    recent = LimitViolation.objects.filter(limit_id__in=alerting, last_at__gt=earliest)
    due = {}
    for limit_id, latest in recent.values_list("limit_id").annotate(latest=Max("last_at")):
        since = told.get(limit_id, max(earliest, channel.created_at))
        is_quiet = limit_id in told and now - since < timedelta(seconds=channel.min_interval_s)
        if latest > since and not is_quiet:
            due[limit_id] = since
    return due


def _violations(limit_id: str, since: datetime) -> Violations | None:
    # A minute's row is counted whole, even if some of its refusals were told before: rather twice than never.
    rows = list(LimitViolation.objects.filter(limit_id=limit_id, last_at__gt=since).order_by("-refused"))
    if not rows:
        return None
    subjects: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = subjects.setdefault(
            row.subject,
            {"subject": row.subject, "application": row.application_id, "address": row.address, "refused": 0},
        )
        entry["refused"] += row.refused
    most = sorted(subjects.values(), key=lambda entry: -entry["refused"])[:MOST_SUBJECTS]
    return Violations(limit_id, rows[0].limit_name, sum(row.refused for row in rows), since, most)


def _message(channel: AlertChannel, found: Violations, now: datetime) -> AlertMessage:
    data = {
        "limit": {"id": found.limit_id, "name": found.limit_name},
        "refused": found.refused,
        "since": found.since.isoformat(),
        "subjects": found.subjects,
    }
    body = document(LIMIT_VIOLATED, now, data)
    return AlertMessage(channel=channel, event=LIMIT_VIOLATED, subject=found.limit_id, body=body, created_at=now)


def document(event: str, at: datetime, data: Mapping[str, Any]) -> dict[str, Any]:
    """As Standard Webhooks has payloads: type, timestamp, data."""
    return {"type": event, "timestamp": at.isoformat(), "data": dict(data)}


def unsent(now: datetime, again_after: timedelta) -> list[str]:
    """Ids of messages that nobody has taken on, or whose taker has not been heard of for long."""
    waiting = Q(published_at__isnull=True) | Q(published_at__lt=now - again_after)
    rows = AlertMessage.objects.filter(waiting, sent_at__isnull=True, failed_at__isnull=True)
    return list(rows.order_by("created_at").values_list("pk", flat=True)[:500])


def published(ids: Iterable[str], now: datetime) -> None:
    AlertMessage.objects.filter(pk__in=list(ids)).update(published_at=now)


# --- sending -------------------------------------------------------------------------------------------------------
def signed_fields(message_id: str, at: datetime, body: bytes, secret: bytes) -> dict[str, str]:
    """The fields of Standard Webhooks: HMAC-SHA-256 over id, time and body. ``secret`` may be written ``whsec_…``."""
    text = secret.decode("utf-8", "surrogateescape")
    key = b64decode(text.removeprefix(_KEPT_SECRET)) if text.startswith(_KEPT_SECRET) else secret
    seconds = int(at.timestamp())
    signature = hmac.new(key, b"%b.%d.%b" % (message_id.encode(), seconds, body), hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{b64encode(signature).decode()}",
    }


def in_words(body: Mapping[str, Any]) -> tuple[str, str]:
    """Subject and text of an e-mail."""
    data = body["data"]
    if body["type"] == LIMIT_VIOLATED:
        lines = [f"Since {data['since']} the limit {data['limit']['name']} refused {data['refused']} requests.", ""]
        lines += [f"{each['refused']:>8}  {each['subject']}  {each['address']}" for each in data["subjects"]]
        return f"Limit {data['limit']['name']} refused {data['refused']} requests", "\n".join(lines) + "\n"
    if body["type"] == TEST:
        return "A test of your alerts", f"The channel {data['channel']} works.\n"
    return f"{body['type']}", "".join(f"{name}: {value}\n" for name, value in data.items())
