"""Pages that are alike: rows of configuration with a list, a form and a way to delete them.

A `Subject` says what they are; its pages are made of that. What is more than that (switches, runs, secrets shown once)
has views of its own in `admin_panel.views`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Q, QuerySet
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from admin_panel.forms import RowForm
from admin_panel.listing import listing, wants_rows_only
from admin_panel.pages import PanelRequest, View, fragment, not_found, page
from admin_panel.saving import Signature, confirm, edit
from core.models import ConfigChange, ConfigRow

_RECENT = 6
_STATES = {"active": Q(is_active=True), "inactive": Q(is_active=False)}


@dataclass(frozen=True, slots=True)
class Column:
    """``shows`` gives what stands in a row; ``form`` how it looks: text, mono, chips, moment or span (seconds)."""

    title: str
    shows: Callable[[Any], Any]
    form: str = "text"


@dataclass(frozen=True, slots=True)
class Subject:
    """``word`` is what URLs and permissions are called by (``alert-channels``), ``noun`` and ``plural`` what people
    say. ``store``, ``change`` and ``remove`` are the use-cases; the last two take the row as ``argument``."""

    word: str
    noun: str
    plural: str
    icon: str
    purpose: str
    resource: str
    model: type[ConfigRow]
    form: type[RowForm]
    store: Callable[..., Any]
    change: Callable[..., Any]
    remove: Callable[..., Any]
    argument: str
    columns: tuple[Column, ...]
    search: tuple[str, ...] = ("name",)
    title: Callable[[Any], str] = str
    warning: Callable[[Any], str] = lambda row: "What depends on it stops within a second."  # before it is deleted
    new_form: type[RowForm] | None = None  # where a new row needs more than one that is edited
    more: str = ""  # a template with what its page shows beside
    more_context: Callable[[Any], Mapping[str, Any]] = lambda row: {}
    order: str = "name"
    title_label: str = "Name"
    has_states: bool = True
    hints: tuple[str, ...] = ()  # what the empty list says
    beside: tuple[tuple[str, str], ...] = ()  # what to call them, and the words, of lists that belong to this one

    @property
    def name(self) -> str:
        """Of the URLs."""
        return self.word.replace("-", "_")

    def url(self, action: str, pk: str = "") -> str:
        return reverse(f"panel:{self.name}{action}", args=[pk] if pk else [])

    @property
    def list_url(self) -> str:
        return self.url("")

    @property
    def new_url(self) -> str:
        return self.url("_new")

    @property
    def links(self) -> list[tuple[str, str]]:
        return [(text, reverse(f"panel:{word.replace('-', '_')}")) for text, word in self.beside]

    def rows(self) -> QuerySet[Any]:
        return self.model._default_manager.all()

    def row(self, pk: str) -> Any:
        return self.rows().filter(pk=pk).first()


def subject_pages(subject: Subject) -> list[tuple[str, View, str, str]]:
    """Route, view, permission and name of each page."""
    word, resource = subject.word, subject.resource
    return [
        (word, _list(subject), f"{resource}:read", subject.name),
        (f"{word}/new", _new(subject), f"{resource}:create", f"{subject.name}_new"),
        (f"{word}/<slug:pk>", _detail(subject), f"{resource}:read", f"{subject.name}_one"),
        (f"{word}/<slug:pk>/edit", _edit(subject), f"{resource}:update", f"{subject.name}_edit"),
        (f"{word}/<slug:pk>/delete", _delete(subject), f"{resource}:delete", f"{subject.name}_delete"),
    ]


def _list(subject: Subject) -> View:
    @require_safe
    def view(request: PanelRequest) -> HttpResponse:
        found = listing(
            request,
            subject.rows(),
            search=subject.search,
            states=_STATES if subject.has_states else {},
            sorts={"name": subject.order, "changed": "updated_at"},
        )
        rows = [_shown(subject, row) for row in found.page]
        context = {"subject": subject, "listing": found, "rows": rows}
        if wants_rows_only(request):
            return fragment(request, "admin_panel/subjects/rows.html", context)
        return page(request, "admin_panel/subjects/list.html", context)

    return view


def _shown(subject: Subject, row: Any) -> dict[str, Any]:
    cells = [{"title": column.title, "form": column.form, "says": column.shows(row)} for column in subject.columns]
    return {"row": row, "title": subject.title(row), "cells": cells, "url": subject.url("_one", row.pk)}


def _detail(subject: Subject) -> View:
    @require_safe
    def view(request: PanelRequest, pk: str) -> HttpResponse:
        row = subject.row(pk)
        if row is None:
            return not_found(request, subject.noun)
        recent = ConfigChange.objects.filter(kind=subject.model.kind, object_id=pk).select_related("revision")
        context = {
            "subject": subject,
            **_shown(subject, row),
            **_urls(subject, pk),
            "recent": recent.order_by("-pk")[:_RECENT],
            **subject.more_context(row),
        }
        return page(request, "admin_panel/subjects/detail.html", context)

    return view


def _urls(subject: Subject, pk: str) -> dict[str, str]:
    return {"edit_url": subject.url("_edit", pk), "delete_url": subject.url("_delete", pk)}


def _new(subject: Subject) -> View:
    @require_http_methods(["GET", "HEAD", "POST"])
    def view(request: PanelRequest) -> HttpResponse:
        def save(changes: dict[str, Any], _: int | None, signed: Signature) -> ConfigRow:
            row: ConfigRow = subject.store(**changes, **signed)
            return row

        context = {"subject": subject, "back": subject.list_url, "action": subject.new_url}
        form = subject.new_form or subject.form
        return edit(request, form, _FORM, save=save, done=_to(subject), context=context)

    return view


def _edit(subject: Subject) -> View:
    @require_http_methods(["GET", "HEAD", "POST"])
    def view(request: PanelRequest, pk: str) -> HttpResponse:
        row = subject.row(pk)
        if row is None:
            return not_found(request, subject.noun)

        def save(changes: dict[str, Any], began: int | None, signed: Signature) -> ConfigRow:
            changed = subject.change(**{subject.argument: row}, changes=changes, if_revision=began, **signed)
            return changed if isinstance(changed, ConfigRow) else row

        back = subject.url("_one", pk)
        context = {"subject": subject, "back": back, "action": subject.url("_edit", pk), "title": subject.title(row)}
        return edit(request, subject.form, _FORM, row=row, save=save, done=_to(subject), context=context)

    return view


def _delete(subject: Subject) -> View:
    @require_http_methods(["GET", "HEAD", "POST"])
    def view(request: PanelRequest, pk: str) -> HttpResponse:
        row = subject.row(pk)
        if row is None:
            return not_found(request, subject.noun)
        context = {"subject": subject, "title": subject.title(row), "warning": subject.warning(row)}
        return confirm(
            request,
            "admin_panel/subjects/delete.html",
            act=lambda signed: subject.remove(**{subject.argument: row}, **signed),
            done=lambda: HttpResponseRedirect(subject.list_url),
            context=context | {"url": subject.url("_delete", pk)},
        )

    return view


def _to(subject: Subject) -> Callable[[Any], HttpResponse]:
    return lambda row: HttpResponseRedirect(subject.url("_one", row.pk))


_FORM = "admin_panel/subjects/form.html"
