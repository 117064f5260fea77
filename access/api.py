"""Applications and their whitelists: ``/admin/access/applications[/{id}[/whitelist[/{entry}]]]``."""

from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet

from access import services as use_cases
from access.models import Application, EndpointWhitelist
from access.serializers import ApplicationSerializer, EntrySerializer
from access.services import StoredEntry
from core.api import Author, ConfigViewSet
from core.faults import ClientFault
from core.listing import Filters, flag_filter

BECAME_LISTED = "With this first entry the application may call whitelisted endpoints only: endpointMode is now listed."


class ApplicationFilters(Filters):
    search_in = ("name", "description")
    name = django_filters.CharFilter()
    endpointMode = django_filters.ChoiceFilter(
        field_name="endpoint_mode", choices=Application.EndpointMode.choices, empty_label=None
    )
    isActive = flag_filter("is_active")


class ApplicationViewSet(ConfigViewSet[Application]):
    queryset = Application.objects.all()
    serializer_class = ApplicationSerializer
    filterset_class = ApplicationFilters
    lookup_field = "id"
    resource, plural = "applications", "applications"

    def store(self, values: dict[str, Any], author: Author) -> tuple[Application, dict[str, Any]]:
        return use_cases.create_application(**values, **author), {}

    def change(
        self, row: Application, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[Application, dict[str, Any]]:
        return use_cases.update_application(application=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: Application, if_revision: int | None, author: Author) -> None:
        use_cases.delete_application(application=row, if_revision=if_revision, **author)


class EntryFilters(Filters):
    search_in = ("endpoint_path",)
    endpointPath = django_filters.CharFilter(field_name="endpoint_path")
    isPublic = flag_filter("is_public")


class EntryViewSet(ConfigViewSet[EndpointWhitelist]):
    queryset = EndpointWhitelist.objects.all()
    serializer_class = EntrySerializer
    filterset_class = EntryFilters
    lookup_field = "id"
    resource, plural = "applications", "entries"
    # An entry belongs to its application: to add or take one is to change that.
    permission_actions: ClassVar = {"POST": "update", "DELETE": "update"}
    orderings: ClassVar = {"createdAt": "created_at", "endpointPath": "endpoint_path"}

    def get_queryset(self) -> QuerySet[EndpointWhitelist]:
        if "application" not in self.kwargs:  # the OpenAPI document is being written
            return EndpointWhitelist.objects.none()
        return EndpointWhitelist.objects.filter(application=self._application())

    def _application(self) -> Application:
        application = Application.objects.filter(pk=self.kwargs["application"]).first()
        if application is None:
            raise ClientFault("not_found", f"There is no application {self.kwargs['application']!r}.")
        return application

    def store(self, values: dict[str, Any], author: Author) -> tuple[EndpointWhitelist, dict[str, Any]]:
        return _told(use_cases.create_entry(application=self._application(), **values, **author))

    def change(
        self, row: EndpointWhitelist, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[EndpointWhitelist, dict[str, Any]]:
        return _told(use_cases.update_entry(entry=row, changes=changes, if_revision=if_revision, **author))

    def remove(self, row: EndpointWhitelist, if_revision: int | None, author: Author) -> None:
        use_cases.delete_entry(entry=row, if_revision=if_revision, **author)


def _told(stored: StoredEntry) -> tuple[EndpointWhitelist, dict[str, Any]]:
    members = {"endpointMode": "listed", "notice": BECAME_LISTED} if stored.became_listed else {}
    return stored.entry, members
