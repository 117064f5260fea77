"""Small pieces that templates are made of."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django import template
from django.conf import settings
from django.forms import BoundField, CheckboxInput, CheckboxSelectMultiple, RadioSelect, Widget
from django.template.context import RequestContext
from django.template.defaultfilters import filesizeformat
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from admin_panel.fields import ChipInput, RowsWidget
from admin_panel.traffic import series
from admin_panel.wording import count_of, kind_name, label
from core.models import ConfigChange, ConfigRow
from keys.models import EXPIRES_SOON, ApiKey
from queues.models import QueuedTask
from routing.models import Rollout

register = template.Library()
register.filter("series", series)
_SPANS = ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (30 * 86_400, 86_400, "d"))
_TASK_TONES = {"succeeded": "good", "failed": "bad", "started": "busy", "published": "busy", "queued": "off"}
_ROLLOUT_TONES = {
    "running": "busy",
    "paused": "warn",
    "completed": "good",
    "rolled_back": "bad",
    "aborted": "off",
    "superseded": "off",
}
_KEY_TONES = {"active": "good", "deprecated": "warn", "suspended": "warn", "revoked": "bad", "expired": "bad"}


@register.simple_tag
def icon(name: str, classes: str = "") -> SafeString:
    """An icon of the vendored sprite (deploy/vendor_assets.py collects the names that templates use)."""
    sprite = static("vendor/tabler-icons/sprite.svg")
    return format_html(
        '<svg class="icon {}" aria-hidden="true" focusable="false"><use href="{}#{}"/></svg>', classes, sprite, name
    )


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """``4 min ago``, with the exact time to hover over."""
    if moment is None:
        return "never"
    seconds = (timezone.now() - moment).total_seconds()
    words = _span(abs(seconds), whole=seconds > 0)
    if words is None:
        text = moment.strftime("%d %b %Y")
    elif abs(seconds) < 5:
        text = "just now"
    else:
        text = f"{words} ago" if seconds > 0 else f"in {words}"
    exact = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    return format_html('<time datetime="{}" title="{}" class="nowrap">{}</time>', moment.isoformat(), exact, text)


def _span(seconds: float, *, whole: bool = True) -> str | None:
    """``whole``: units that have passed; else the nearest number of them, for what is to come."""
    for below, unit, name in _SPANS:
        if seconds < below:
            return f"{int(seconds // unit) if whole else round(seconds / unit)} {name}"
    return None


@register.filter
def kind(name: str) -> str:
    """A kind of object in words."""
    return kind_name(name)


@register.filter
def operation(change: ConfigChange) -> str:
    """``Created``, ``Updated``, ``Deleted``."""
    return f"{change.operation.capitalize()}d"


@register.filter
def took(task: QueuedTask) -> str:
    """From the 202 to the end."""
    if task.finished_at is None:
        return "—"
    seconds = (task.finished_at - task.accepted_at).total_seconds()
    return f"{seconds:.1f} s" if seconds < 60 else _span(seconds) or "months"


@register.filter
def changed_fields(change: ConfigChange) -> str:
    """``weight, is active``: what an update changed, the first three; empty for other operations."""
    if not change.before or not change.after:
        return ""
    names = [name for name, value in change.after.items() if change.before.get(name) != value]
    words = (label(None, name).removesuffix(" (ms)") for name in names[:3])
    shown = ", ".join(word[0].lower() + word[1:] for word in words)
    return shown + (" …" if len(names) > 3 else "")


@register.simple_tag
def count(number: int, singular: str, plural: str = "") -> str:
    return count_of(number, singular, plural)


@register.inclusion_tag("admin_panel/includes/state.html")
def state(row: ConfigRow) -> dict[str, str]:
    """A dot and a word: what a row is doing."""
    if isinstance(row, ApiKey):
        status = key_status(row)
        return {"tone": _KEY_TONES[status], "text": "Rotated" if status == "deprecated" else status.capitalize()}
    is_active = bool(getattr(row, "is_active", True))
    return {"tone": "good" if is_active else "off", "text": "Active" if is_active else "Inactive"}


@register.inclusion_tag("admin_panel/includes/state.html")
def task_state(task: QueuedTask) -> dict[str, str]:
    return {"tone": _TASK_TONES.get(task.state, "off"), "text": task.get_state_display()}


@register.filter
def seconds_as_ms(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


@register.inclusion_tag("admin_panel/includes/state.html")
def rollout_state(rollout: Rollout) -> dict[str, str]:
    return {"tone": _ROLLOUT_TONES[rollout.status], "text": rollout.get_status_display()}


@register.filter
def key_status(key: ApiKey) -> str:
    """The stored status, or ``expired``."""
    is_expired = key.expires_at is not None and key.expires_at <= timezone.now()
    return "expired" if is_expired and key.status in ("active", "deprecated") else str(key.status)


@register.filter
def ends_soon(key: ApiKey) -> bool:
    """It works, nobody has seen to a successor, and it ends within a month."""
    now = timezone.now()
    return key.status == "active" and key.expires_at is not None and now < key.expires_at <= now + EXPIRES_SOON


@register.inclusion_tag("admin_panel/includes/field.html")
def field(bound: BoundField) -> dict[str, Any]:
    """A field with its label, its hint and its errors, each tied to it for screen readers."""
    widget = bound.field.widget
    shown = {"field": bound, "kind": _shape(widget), "unit": getattr(bound.field, "unit", ""), "widget": widget}
    shown["counts_with"] = " ".join(getattr(bound.form, "counts_with", {}).get(bound.name, ()))
    if isinstance(widget, RowsWidget):
        shown |= {"lines": widget.lines(bound.value() or ()), "empty": widget.lines([{}])[0]}
    return shown


def _shape(widget: Widget) -> str:
    if isinstance(widget, CheckboxInput):
        return "check"
    if isinstance(widget, CheckboxSelectMultiple | RadioSelect):
        return "choices"
    if isinstance(widget, RowsWidget):
        return "rows"
    return "chips" if isinstance(widget, ChipInput) else "text"


@register.inclusion_tag("admin_panel/includes/sort_header.html", takes_context=True)
def sort_header(context: RequestContext, name: str, title: str) -> dict[str, Any]:
    """A column head that orders the list, the other way round when it does already."""
    current = context["listing"].sort
    chosen = {name: "ascending", f"-{name}": "descending"}.get(current, "")
    query = context["request"].GET.copy()
    query.pop("page", None)
    query["sort"] = f"-{name}" if current == name else name
    return {"title": title, "order": chosen, "url": f"?{query.urlencode()}"}


@register.filter
def milliseconds(value: int | None) -> str:
    if value is None:
        return "default"
    return f"{value / 1000:g} s" if value >= 1000 else f"{value} ms"


@register.filter
def seconds(value: float) -> str:
    """``45 s``, ``5 min``, ``1.5 h``."""
    for unit, name in ((3600, "h"), (60, "min")):
        if value >= unit and value * 10 % unit == 0:
            return f"{value / unit:g} {name}"
    return f"{value:g} s"


@register.filter
def number(value: float) -> str:
    """``1.5`` and ``1``, not ``1.50`` and ``1.0``."""
    return f"{value:g}"


@register.filter
def minus(number: int, other: int) -> int:
    return number - other


@register.simple_tag
def key_prefix() -> str:
    """What every key of this gateway begins with."""
    return str(settings.API_KEY_PREFIX)


@register.simple_tag
def request_timeout() -> str:
    """How long the gateway waits for an answer's first byte where nothing else is said."""
    return seconds(settings.REQUEST_TIMEOUT)


@register.simple_tag
def largest_body() -> str:
    """The largest body of a request where nothing else is said."""
    return filesizeformat(settings.MAX_REQUEST_BODY_SIZE)


@register.filter
def at(mapping: Mapping[str, Any], key: str) -> Any:
    return mapping.get(key)


@register.filter
def is_past(moment: datetime) -> bool:
    return moment <= timezone.now()


@register.filter
def any_granted(line: Mapping[str, Any]) -> bool:
    """Of a line of `people_forms.permission_table`."""
    return any(action["is_there"] and action["is_granted"] for action in line["actions"])


@register.filter
def any_line_granted(lines: list[Mapping[str, Any]]) -> bool:
    return any(any_granted(line) for line in lines)
