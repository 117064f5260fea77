"""Alert channels: ``/admin/access/alert-channels[/{id}[/test|/messages]]``."""

from typing import Any, ClassVar

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiExample, extend_schema, extend_schema_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access import alerts as use_cases
from access.alerts import CHANNEL_FIELDS, EVENTS, LONGEST_INTERVAL_S
from access.models import AlertChannel, AlertMessage
from core.api import Author, ConfigViewSet, ListViewSet, author
from core.faults import ClientFault
from core.listing import Filters, flag_filter
from core.serializers import ConfigSerializer, EpochMillis, config_meta, text_list


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A webhook",
            {
                "name": "on call",
                "medium": "webhook",
                "url": "https://alerts.example.com/portcullis",
                "secret": "secret://env/UPSTREAM_ALERTS",
                "minIntervalS": 300,
            },
            request_only=True,
        )
    ]
)
class AlertChannelSerializer(ConfigSerializer[AlertChannel]):
    """``secret`` is a reference to what signs webhooks (Standard Webhooks). ``events`` empty: all of them."""

    bounds: ClassVar = {"min_interval_s": {"maximum": LONGEST_INTERVAL_S}}
    recipients = text_list(required=False)
    events = serializers.ListField(child=serializers.ChoiceField(choices=EVENTS), required=False)
    Meta = config_meta(AlertChannel, *CHANNEL_FIELDS)


class AlertMessageSerializer(serializers.ModelSerializer[AlertMessage]):
    createdAt = EpochMillis(source="created_at")
    sentAt = EpochMillis(source="sent_at", allow_null=True)
    failedAt = EpochMillis(source="failed_at", allow_null=True)
    body = serializers.DictField()

    class Meta:
        model = AlertMessage
        fields = ("id", "event", "subject", "body", "tries", "createdAt", "sentAt", "failedAt", "error")
        read_only_fields = fields


class AlertChannelFilters(Filters):
    name = django_filters.CharFilter()
    medium = django_filters.ChoiceFilter(choices=AlertChannel.Medium.choices, empty_label=None)
    isActive = flag_filter("is_active")


class AlertChannelViewSet(ConfigViewSet[AlertChannel]):
    queryset = AlertChannel.objects.all()
    serializer_class = AlertChannelSerializer
    filterset_class = AlertChannelFilters
    lookup_field = "id"
    resource, plural = "alerts", "channels"

    def store(self, values: dict[str, Any], author: Author) -> tuple[AlertChannel, dict[str, Any]]:
        return use_cases.create_channel(**values, **author), {}

    def change(
        self, row: AlertChannel, changes: dict[str, Any], if_revision: int | None, author: Author
    ) -> tuple[AlertChannel, dict[str, Any]]:
        return use_cases.update_channel(channel=row, changes=changes, if_revision=if_revision, **author), {}

    def remove(self, row: AlertChannel, if_revision: int | None, author: Author) -> None:
        use_cases.delete_channel(channel=row, if_revision=if_revision, **author)


class AlertTestView(APIView):
    """A message that says only that the channel works; what became of it stands in the channel's messages."""

    resource = "alerts"
    permission_actions: ClassVar = {"POST": "update"}

    @extend_schema(
        operation_id="alert_channel_test", summary="Test channel", request=None, responses={202: AlertMessageSerializer}
    )
    def post(self, request: Request, id: str) -> Response:
        by = author(request)
        message = use_cases.send_test(channel=_channel(id), actor=by["actor"], source=by["source"])
        return Response(AlertMessageSerializer(message).data, status=202)


class AlertMessageFilters(Filters):
    search_in = ("event", "subject", "error")
    event = django_filters.CharFilter()


class AlertMessageViewSet(ListViewSet[AlertMessage]):
    """What a channel was told, and what has become of it."""

    queryset = AlertMessage.objects.all()
    serializer_class = AlertMessageSerializer
    filterset_class = AlertMessageFilters
    resource, plural = "alerts", "messages"
    orderings: ClassVar = {"createdAt": "created_at"}
    default_ordering = "-createdAt"

    def get_queryset(self) -> QuerySet[AlertMessage]:
        if "channel" not in self.kwargs:  # the OpenAPI document is being written
            return AlertMessage.objects.none()
        return AlertMessage.objects.filter(channel=_channel(self.kwargs["channel"]))


def _channel(channel_id: str) -> AlertChannel:
    channel = AlertChannel.objects.filter(pk=channel_id).first()
    if channel is None:
        raise ClientFault("not_found", f"There is no alert channel {channel_id!r}.")
    return channel
