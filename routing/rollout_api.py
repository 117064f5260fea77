"""``/admin/routing/services/{name}/rollouts`` and ``…/versions/{version}/callers``: how versions begin and end."""

from datetime import timedelta
from typing import Any, ClassVar

import django_filters
from django.db.models import OuterRef, QuerySet, Subquery
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access.models import Application
from core.api import ListViewSet, author, entity_tag, settle
from core.faults import ClientFault
from core.listing import Filters
from core.revisions import observed
from core.serializers import EpochMillis, Flag, StrictSerializer, epoch_ms, policy_schema
from keys.models import ApiKey
from routing import rollouts as use_cases
from routing.api import find_service
from routing.compile import phase
from routing.judging import Numbers
from routing.models import Rollout, VersionUse
from routing.policies import RolloutPlan
from routing.traffic import numbers_of, numbers_since


@extend_schema_field(policy_schema(RolloutPlan))
class PlanField(serializers.JSONField):
    pass


class ComparedSerializer(serializers.Serializer[Any]):
    """What a version did since the step began, on all hosts together."""

    version = serializers.CharField()
    role = serializers.ChoiceField(choices=["canary", "stable"])
    weight = serializers.IntegerField()
    requests = serializers.IntegerField()
    failed = serializers.IntegerField()
    errorPercent = serializers.FloatField()
    p95Ms = serializers.FloatField(allow_null=True)


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    """``step`` counts from 0. ``comparison`` is null once the rollout has ended; ``outcome`` then says why it did."""

    service = serializers.CharField(source="service.name")
    plan = PlanField()
    stepBeganAt = EpochMillis(source="step_began_at")
    endedAt = EpochMillis(source="ended_at", allow_null=True)
    judgedAt = EpochMillis(source="judged_at", allow_null=True)
    createdAt = EpochMillis(source="created_at")
    comparison = serializers.SerializerMethodField()

    class Meta:
        model = Rollout
        fields = (
            "id", "service", "version", "plan", "status", "step", "stepBeganAt", "before", "weights", "outcome",
            "endedAt", "judgedAt", "judgement", "comparison", "revision", "createdAt",
        )  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(ComparedSerializer(many=True, allow_null=True))
    def get_comparison(self, rollout: Rollout) -> list[dict[str, Any]] | None:
        if not rollout.is_open:
            return None
        found = numbers_of(rollout.service_id, [phase(rollout)])
        names = sorted(rollout.weights, key=lambda name: (name != rollout.version, name))
        return [_compared(rollout, name, found.get(name, Numbers())) for name in names]


def _compared(rollout: Rollout, name: str, numbers: Numbers) -> dict[str, Any]:
    return {
        "version": name,
        "role": "canary" if name == rollout.version else "stable",
        "weight": rollout.weights[name],
        **_measured(numbers),
    }


def _measured(numbers: Numbers) -> dict[str, Any]:
    return {
        "requests": numbers.requests,
        "failed": numbers.errors,
        "errorPercent": round(numbers.error_percent, 3),
        "p95Ms": round(numbers.p95_s * 1000, 2) if numbers.requests else None,
    }


class RolloutFilters(Filters):
    search_in = ("version", "outcome")
    version = django_filters.CharFilter()
    status = django_filters.ChoiceFilter(choices=Rollout.Status.choices)


_IN_THREE_STEPS = OpenApiExample(
    "In three steps",
    {
        "version": "v2",
        "steps": [{"percent": 5, "holdS": 300}, {"percent": 25, "holdS": 600}, {"percent": 100, "holdS": 600}],
        "minSamples": 200,
        "maxErrorIncrease": 0.5,
        "maxLatencyRatio": 1.5,
    },
    request_only=True,
)


class PromotionSerializer(StrictSerializer):
    """``full``: to the plan's last step, and its end, at once."""

    full = Flag(required=False)


class RolloutViewSet(ListViewSet[Rollout]):
    """Gradual rollouts of a service, the newest first."""

    queryset = Rollout.objects.select_related("service")
    serializer_class = RolloutSerializer
    filterset_class = RolloutFilters
    lookup_field = "id"
    resource, plural = "services", "rollouts"
    makes_revisions = True
    permission_actions: ClassVar = {"POST": "update"}  # it changes weights, and makes nothing that stays
    orderings: ClassVar = {"createdAt": "created_at", "endedAt": "ended_at"}
    default_ordering = "-createdAt"

    def get_queryset(self) -> QuerySet[Rollout]:
        if "name" not in self.kwargs:  # the OpenAPI document is being written
            return self.queryset.none()
        return self.queryset.filter(service=find_service(self.kwargs["name"]))

    @extend_schema(
        request={"application/json": policy_schema(RolloutPlan)},
        responses={201: RolloutSerializer},
        examples=[_IN_THREE_STEPS],
    )
    def create(self, request: Request, **_: Any) -> Response:
        """Start one. The first step takes force at once; a second one beside it is refused (409)."""
        if not isinstance(request.data, dict):
            raise serializers.ValidationError({"body": ["Send a JSON object."]})
        with observed() as numbers:
            rollout = use_cases.start_rollout(
                service=find_service(self.kwargs["name"]), plan=request.data, **author(request)
            )
        response = self._answer(rollout, status=201)
        response["Location"] = f"{request.path.rstrip('/')}/{rollout.pk}"
        return settle(request, response, numbers)

    @extend_schema(request=PromotionSerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, **_: Any) -> Response:
        """To the next step without waiting; from the last one, or with ``full``, to the end."""
        serializer = PromotionSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        return self._decide(request, use_cases.promote_rollout, is_full=serializer.validated_data.get("full", False))

    @extend_schema(request=None, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, **_: Any) -> Response:
        """The weights stay as they are, and nothing is judged."""
        return self._decide(request, use_cases.pause_rollout)

    @extend_schema(request=None, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, **_: Any) -> Response:
        """Go on with a paused one; the step's time begins anew."""
        return self._decide(request, use_cases.resume_rollout)

    @extend_schema(request=None, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def abort(self, request: Request, **_: Any) -> Response:
        """Back to the weights of before."""
        return self._decide(request, use_cases.abort_rollout)

    def _decide(self, request: Request, use_case: Any, **options: Any) -> Response:
        with observed() as numbers:
            rollout = use_case(rollout=self.get_object(), **options, **author(request))
        return settle(request, self._answer(rollout), numbers)

    def _answer(self, rollout: Rollout, status: int = 200) -> Response:
        data = self.get_serializer(rollout).data
        return Response(data, status=status, headers={"ETag": entity_tag(rollout.revision)})


# --- how versions fare ---------------------------------------------------------------------------------------------
class VersionTrafficSerializer(serializers.Serializer[Any]):
    version = serializers.CharField()
    weight = serializers.IntegerField()
    requests = serializers.IntegerField()
    failed = serializers.IntegerField()
    errorPercent = serializers.FloatField()
    p95Ms = serializers.FloatField(allow_null=True)


class TrafficSerializer(serializers.Serializer[Any]):
    """``isMeasured``: the versions share traffic by weight, or a rollout is under way; others are not counted."""

    isMeasured = serializers.BooleanField()
    since = EpochMillis()
    versions = VersionTrafficSerializer(many=True)


_WINDOW = OpenApiParameter(
    "windowS",
    {"type": "integer", "minimum": 10, "maximum": 86_400},
    description="How far back, in seconds; 300 unless given",
)


class TrafficView(APIView):
    """What the versions of a service did lately, on all hosts together."""

    resource = "services"

    @extend_schema(
        summary="Read traffic of versions",
        parameters=[_WINDOW],
        responses=TrafficSerializer,
    )
    def get(self, request: Request, name: str) -> Response:
        service = find_service(name)
        since = timezone.now() - timedelta(seconds=_window_s(request))
        found = numbers_since(service.pk, since)
        rows = list(service.versions.order_by("version"))
        versions = [
            {"version": row.version, "weight": row.weight, **_measured(found.get(row.version, Numbers()))}
            for row in rows
        ]
        has_rollout = service.rollouts.filter(status__in=Rollout.OPEN).exists()
        is_measured = has_rollout or sum(row.takes_traffic and row.weight > 0 for row in rows) > 1
        return Response({"isMeasured": is_measured, "since": epoch_ms(since), "versions": versions})


def _window_s(request: Request) -> int:
    text = request.query_params.get("windowS", "300")
    if set(request.query_params) - {"windowS"}:
        raise serializers.ValidationError({"windowS": ["This is the only parameter."]})
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 10 <= int(text) <= 86_400):
        raise serializers.ValidationError({"windowS": ["A whole number of seconds from 10 to 86400."]})
    return int(text)


# --- who calls a deprecated version --------------------------------------------------------------------------------
class CallerFilters(Filters):
    search_in = ("application_name", "address")
    application = django_filters.CharFilter(field_name="application_name")


class CallerSerializer(serializers.ModelSerializer[VersionUse]):
    """An application with one of its keys. Names are null for what has been deleted, and for calls without a key."""

    application = serializers.CharField(source="application_name", allow_null=True)
    applicationId = serializers.CharField(source="application_id")
    key = serializers.CharField(source="key_name", allow_null=True)
    keyId = serializers.CharField(source="key_id", allow_blank=True)
    address = serializers.CharField(help_text="Of the last request")
    firstUsedAt = EpochMillis(source="first_used_at")
    lastUsedAt = EpochMillis(source="last_used_at")

    class Meta:
        model = VersionUse
        fields = ("application", "applicationId", "key", "keyId", "address", "requests", "firstUsedAt", "lastUsedAt")
        read_only_fields = fields


class CallerViewSet(ListViewSet[VersionUse]):
    """Who still calls a deprecated version, the latest first. Written at most every ten seconds; kept for 90 days
    after the last call."""

    queryset = VersionUse.objects.annotate(
        application_name=Subquery(Application.objects.filter(pk=OuterRef("application_id")).values("name")[:1]),
        key_name=Subquery(ApiKey.objects.filter(pk=OuterRef("key_id")).values("name")[:1]),
    )
    serializer_class = CallerSerializer
    filterset_class = CallerFilters
    resource, plural = "services", "callers"
    orderings: ClassVar = {"lastUsedAt": "last_used_at", "firstUsedAt": "first_used_at", "requests": "requests"}
    default_ordering = "-lastUsedAt"

    def get_queryset(self) -> QuerySet[VersionUse]:
        if "name" not in self.kwargs:  # the OpenAPI document is being written
            return self.queryset.none()
        service, version = find_service(self.kwargs["name"]), self.kwargs["version"]
        if not service.versions.filter(version=version).exists():
            raise ClientFault("not_found", f"The service has no version {version!r}.")
        return self.queryset.filter(service_id=service.pk, version=version)
