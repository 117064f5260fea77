"""The user administration for emergencies (``/django-admin/``), for superusers alone.

What is changed of a user is one revision, by whoever did it: the account follows (`access.administration`), and the
last SUPER_ADMIN stays here too.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from access.administration.rights import caller_by_session
from access.administration.users import follow_user, refuse_deletion_of_last
from core.faults import ClientFault
from core.revisions import Actor, RevisionWriter, revision


def _is_superuser(request: HttpRequest) -> bool:
    return request.user.is_active and request.user.is_superuser


admin.site.has_permission = _is_superuser  # type: ignore[method-assign]
admin.site.unregister(User)


@admin.register(User)
class RecordedUserAdmin(UserAdmin):  # type: ignore[type-arg]  # generic in the stubs alone
    """What `access.receivers` and `keys.receivers` do about a deleted user's account and keys joins the revision that
    is begun here."""

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        follow_user(
            user=obj,
            save=lambda: super(RecordedUserAdmin, self).save_model(request, obj, form, change),
            actor=_actor(request),
            source="panel",
            reason=f"The user {obj.get_username()} was {'changed' if change else 'made'} in an emergency.",
        )

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        with _revision_by(request, f"The user {obj.get_username()} was deleted."):
            refuse_deletion_of_last(obj)
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        names = ", ".join(user.get_username() for user in queryset)
        with _revision_by(request, f"The users {names} were deleted."):
            for user in queryset:  # one after the other: of the last two, one stays
                refuse_deletion_of_last(user)
                user.delete()

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return _or_told(request, lambda: super(RecordedUserAdmin, self).changeform_view(request, *args, **kwargs))

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return _or_told(request, lambda: super(RecordedUserAdmin, self).delete_view(request, *args, **kwargs))

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return _or_told(request, lambda: super(RecordedUserAdmin, self).changelist_view(request, *args, **kwargs))


def _or_told(request: HttpRequest, view: Callable[[], HttpResponse]) -> HttpResponse:
    """A refusal is a message above the page; nothing of what was asked has happened."""
    try:
        return view()
    except ClientFault as fault:
        messages.error(request, fault.detail)
        return HttpResponseRedirect(request.path)


def _actor(request: HttpRequest) -> Actor:
    assert isinstance(request.user, User)
    return caller_by_session(request, request.user).actor


def _revision_by(request: HttpRequest, reason: str) -> AbstractContextManager[RevisionWriter]:
    return revision(actor=_actor(request), source="panel", reason=reason)
