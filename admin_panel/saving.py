"""Saving: one revision, one toast; refusals at the fields; somebody else's save in between shown field by field."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from django.contrib import messages
from django.http import HttpResponse

from admin_panel.forms import RowForm
from admin_panel.pages import Context, PanelRequest, fragment, page
from admin_panel.wording import readable
from core.faults import ClientFault, GatewayFault, PolicyDenied
from core.models import ConfigChange, ConfigRevision, ConfigRow
from core.revisions import revision
from core.validation import is_storable

REVISION_LEVEL = 21  # of messages: a revision's number, which the toast follows until the nodes have it
REASON_LIMIT = 500
_UNCHANGED = "Nothing to save: it is as it was."
Signature: TypeAlias = dict[str, Any]
_T = TypeVar("_T")


def signature(request: PanelRequest, reason: str = "") -> Signature:
    """``actor``, ``source`` and ``reason`` as use-cases take them. Raises ClientFault ``bad_request``."""
    if not is_storable(reason):
        raise ClientFault("bad_request", "The reason holds a character that cannot be stored.")
    return {"actor": request.caller.actor, "source": "panel", "reason": reason[:REASON_LIMIT]}


@contextmanager
def saving(request: PanelRequest, reason: str = "", *, unchanged: str = _UNCHANGED) -> Iterator[Signature]:
    """One revision around use-cases, which get the signature it yields; afterwards a toast says what came of it:
    ``unchanged`` where the configuration is as it was."""
    signed = signature(request, reason)
    with revision(**signed) as change:
        yield signed
    if change.changes:
        announce(request, change.number)
    else:
        messages.info(request, unchanged)


def announce(request: PanelRequest, number: int) -> None:
    """The toast of a revision."""
    messages.add_message(request, REVISION_LEVEL, str(number), extra_tags="revision")


def edit(
    request: PanelRequest,
    form_class: type[RowForm],
    template: str,
    *,
    save: Callable[[dict[str, Any], int | None, Signature], _T],
    done: Callable[[_T], HttpResponse],
    row: ConfigRow | None = None,
    initial: Context | None = None,
    context: Context | None = None,
) -> HttpResponse:
    """A form's whole life. ``save`` gets the changes, the revision they began with (None: a new row) and the signature;
    ``done`` gets what ``save`` returned."""
    data = request.POST if request.method == "POST" else None
    form = form_class.of(row, data) if row is not None else form_class(data, initial=dict(initial or {}))
    shown = {**(context or {}), "form": form, "row": row}
    if data is None:
        return page(request, template, shown)
    if not form.is_valid():
        return page(request, template, shown, status=422)
    try:
        with saving(request, form.cleaned_data["reason"]) as signed:
            result = save(form.changes(), form.cleaned_data["revision"], signed)
    except (ClientFault, PolicyDenied) as fault:
        return _refused(request, template, shown, form, fault, row)
    return done(result)


def _refused(
    request: PanelRequest, template: str, shown: dict[str, Any], form: RowForm, fault: GatewayFault, row: Any
) -> HttpResponse:
    if fault.code == "not_found":
        raise fault
    if fault.code == "stale_revision" and row is not None:
        row.refresh_from_db()
        shown |= {"form": form.of(row), "conflict": conflict_between(row, form)}
        return page(request, template, shown, status=fault.status)
    form.take(fault)
    return page(request, template, shown, status=fault.status)


def confirm(
    request: PanelRequest,
    template: str,
    *,
    act: Callable[[Signature], object],
    done: Callable[[], HttpResponse],
    context: Context,
    unchanged: str = _UNCHANGED,
) -> HttpResponse:
    """A dialog that says what an action will do, and the action. A refusal is shown in the dialog; ``unchanged`` is
    said afterwards where the action changes no configuration."""
    if request.method != "POST":
        return fragment(request, template, context)
    try:
        with saving(request, request.POST.get("reason", ""), unchanged=unchanged) as signed:
            act(signed)
    except (ClientFault, PolicyDenied) as fault:
        response = fragment(request, template, {**context, "fault": fault}, status=fault.status)
        response.headers["HX-Retarget"] = "#dialog-slot"
        response.headers["HX-Reswap"] = "innerHTML"
        response.headers["HX-Push-Url"] = "false"
        return response
    return done()


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """One field of which theirs and mine differ, in words. ``began`` is what both began with, where that is known."""

    label: str
    began: str
    theirs: str
    mine: str


@dataclass(frozen=True, slots=True)
class Conflict:
    fields: list[FieldConflict]
    revision: ConfigRevision | None


def conflict_between(current: ConfigRow, form: RowForm) -> Conflict:
    """What somebody saved since the form was opened, beside what the form would have saved."""
    began = _as_it_was(current, form.cleaned_data["revision"])
    fields = []
    for name, mine in form.changes().items():
        theirs = getattr(current, name)
        if theirs != mine:
            stored = current._meta.get_field(name).attname  # type: ignore[union-attr]
            before = "" if theirs is not None and hasattr(theirs, "pk") else readable(began.get(stored))
            fields.append(FieldConflict(form.label_of(name), before, readable(theirs), readable(mine)))
    return Conflict(fields, ConfigRevision.objects.filter(pk=current.revision).first())


def _as_it_was(row: ConfigRow, began: int) -> dict[str, Any]:
    """The row at revision ``began``: the ``before`` of the first change after it."""
    later = ConfigChange.objects.filter(kind=row.kind, object_id=row.pk, revision_id__gt=began)
    first = later.order_by("revision_id").first()
    return (first.before or {}) if first else {}
