"""The user administration for emergencies (``/django-admin/``): deleting a user is one revision, by whoever did it."""

from contextlib import AbstractContextManager

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest

from core.revisions import Actor, RevisionWriter, revision

admin.site.unregister(User)


@admin.register(User)
class RecordedUserAdmin(UserAdmin):  # type: ignore[type-arg]  # generic in the stubs alone
    """What `keys.receivers` does about a deleted user's keys joins the revision that is begun here."""

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        with _revision_by(request, f"The user {obj.get_username()} was deleted."):
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        names = ", ".join(user.get_username() for user in queryset)
        with _revision_by(request, f"The users {names} were deleted."):
            super().delete_queryset(request, queryset)


def _revision_by(request: HttpRequest, reason: str) -> AbstractContextManager[RevisionWriter]:
    actor = Actor("user", str(request.user.pk), request.user.get_username())
    return revision(actor=actor, source="panel", reason=reason)
