"""How targets are doing: ``…/services/{name}/health``, ``…/health-check`` and ``/admin/circuit-breaker``."""

from typing import Any, ClassVar

import django_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.api import ListViewSet, author, settle
from core.listing import Filters
from core.policies import plain
from core.revisions import observed
from core.serializers import EpochMillis
from routing import services as use_cases
from routing.api import find_service
from routing.models import TargetStatus
from routing.target_report import IS_CURRENT, ask_targets, report_on


class HostStatusSerializer(serializers.ModelSerializer[TargetStatus]):
    """What one host holds of a target. ``source``: static (configured), http, redis or dns (found). ``isHealthy`` is
    what its probes say, when ``isProbed``."""

    isProbed = serializers.BooleanField(source="is_probed")
    isHealthy = serializers.BooleanField(source="is_healthy")
    since = EpochMillis(source="health_since", allow_null=True)
    checkedAt = EpochMillis(source="checked_at", allow_null=True)
    lastStatus = serializers.IntegerField(source="last_status", allow_null=True)
    lastMs = serializers.IntegerField(source="last_ms", allow_null=True)
    lastError = serializers.CharField(source="last_error")
    circuitSince = EpochMillis(source="circuit_since", allow_null=True)
    isEjected = serializers.BooleanField(source="is_ejected")
    seenAt = EpochMillis(source="seen_at")

    class Meta:
        model = TargetStatus
        fields = (
            "host", "source", "isProbed", "isHealthy", "since", "checkedAt", "lastStatus", "lastMs", "lastError",
            "circuit", "circuitSince", "isEjected", "seenAt",
        )  # fmt: skip
        read_only_fields = fields


class TargetHealthSerializer(serializers.Serializer[Any]):
    version = serializers.CharField()
    url = serializers.CharField()
    hosts = HostStatusSerializer(many=True)


class ServiceHealthSerializer(serializers.Serializer[Any]):
    """``isHealthy`` is false when a host holds a target for unhealthy, ejected it, or opened its circuit. ``check`` is
    how the targets are probed, null when they are not. A target without hosts has not been needed or probed yet."""

    service = serializers.CharField()
    isHealthy = serializers.BooleanField()
    check = serializers.DictField(allow_null=True)
    targets = TargetHealthSerializer(many=True)


class ServiceHealthView(APIView):
    """Each target of a service as every host sees it."""

    resource = "services"

    @extend_schema(summary="Read health of service", responses=ServiceHealthSerializer)
    def get(self, request: Request, name: str) -> Response:
        service = find_service(name)
        report = report_on(service)
        document = {
            "service": service.name,
            "isHealthy": report.is_healthy,
            "check": None if report.check is None else plain(report.check),
            "targets": [
                {"version": target.version, "url": target.url, "hosts": target.hosts} for target in report.targets
            ],
        }
        return Response(ServiceHealthSerializer(document).data)


# --- asking now --------------------------------------------------------------------------------------------------
class FindingSerializer(serializers.Serializer[Any]):
    versions = serializers.ListField(child=serializers.CharField())
    url = serializers.CharField()
    isHealthy = serializers.BooleanField()
    status = serializers.IntegerField(allow_null=True)
    ms = serializers.FloatField()
    error = serializers.CharField()


class HealthCheckSerializer(serializers.Serializer[Any]):
    """``isHealthy`` is what this one answer says, before any threshold; ``status`` is null where there was none."""

    check = serializers.DictField()
    targets = FindingSerializer(many=True)


class HealthCheckView(APIView):
    """Asks each target of a service once, now, from this host, as its health checks would: never following redirects,
    and only where the gateway may connect to. What is held of the targets stays as it is."""

    resource = "services"
    permission_actions: ClassVar[dict[str, str]] = {"POST": "update"}

    @extend_schema(summary="Check health now", request=None, responses=HealthCheckSerializer)
    def post(self, request: Request, name: str) -> Response:
        check, answers = ask_targets(find_service(name))
        targets = [
            {
                "versions": list(answer.versions),
                "url": answer.url,
                "isHealthy": answer.finding.is_good,
                "status": answer.finding.status,
                "ms": round(answer.finding.ms, 1),
                "error": answer.finding.error,
            }
            for answer in answers
        ]
        return Response(HealthCheckSerializer({"check": plain(check), "targets": targets}).data)


# --- circuits ----------------------------------------------------------------------------------------------------
class CircuitSerializer(serializers.ModelSerializer[TargetStatus]):
    """The circuit of one target, as the workers of one host have it: the worst of theirs."""

    service = serializers.CharField(source="service.name")
    state = serializers.CharField(source="circuit")
    since = EpochMillis(source="circuit_since", allow_null=True)
    isEjected = serializers.BooleanField(source="is_ejected")
    seenAt = EpochMillis(source="seen_at")

    class Meta:
        model = TargetStatus
        fields = ("service", "version", "url", "host", "state", "since", "isEjected", "seenAt")
        read_only_fields = fields


class CircuitFilters(Filters):
    search_in = ("service__name", "url")
    service = django_filters.CharFilter(field_name="service__name")
    host = django_filters.CharFilter()
    state = django_filters.ChoiceFilter(field_name="circuit", choices=TargetStatus.Circuit.choices, empty_label=None)


class CircuitViewSet(ListViewSet[TargetStatus]):
    queryset = TargetStatus.objects.filter(IS_CURRENT).select_related("service")
    serializer_class = CircuitSerializer
    filterset_class = CircuitFilters
    resource, plural = "services", "circuits"
    tenant_path = "service__tenant"
    orderings: ClassVar = {"id": "pk", "host": "host", "url": "url", "state": "circuit"}


class ResetSerializer(serializers.Serializer[Any]):
    """``reset``: the circuits that were open or half-open, as far as hosts had said so. ``circuitResets`` counts the
    resets of the service."""

    service = serializers.CharField()
    circuitResets = serializers.IntegerField()
    reset = CircuitSerializer(many=True)


class CircuitResetView(APIView):
    """Closes the circuits of all targets of a service on every host. It is a revision, so the answer comes when the
    gateways have applied it, and the history says who did it."""

    resource = "services"
    permission_actions: ClassVar[dict[str, str]] = {"POST": "update"}
    makes_revisions = True

    @extend_schema(summary="Reset circuits", request=None, responses=ResetSerializer)
    def post(self, request: Request, name: str) -> Response:
        service = find_service(name)
        rows = TargetStatus.objects.filter(IS_CURRENT, service=service).exclude(circuit=TargetStatus.Circuit.CLOSED)
        reset = list(rows.select_related("service").order_by("pk"))
        with observed() as numbers:
            service = use_cases.reset_circuits(service=service, **author(request))
        document = {"service": service.name, "circuitResets": service.circuit_resets, "reset": reset}
        return settle(request, Response(ResetSerializer(document).data), numbers)
