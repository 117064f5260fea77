"""What spans the apps: health, and the documents that describe the API."""

from functools import cache
from pathlib import Path
from typing import Any

import orjson
from django.contrib.staticfiles.finders import find
from django.db import connection
from django.db.models import Max, Min
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerSplitView
from rest_framework import serializers
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.models import ConfigRevision
from core.propagation import live_nodes
from queues.models import QueuedTask
from routing.target_report import trouble

_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'"
)
_SWAGGER_POLICY = f"{_POLICY}; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
_REDOC_POLICY = _SWAGGER_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'") + "; worker-src blob:"


class NodesHealthSerializer(serializers.Serializer[Any]):
    live = serializers.IntegerField()
    behind = serializers.ListField(child=serializers.CharField())
    withProblems = serializers.ListField(child=serializers.CharField())


class TasksHealthSerializer(serializers.Serializer[Any]):
    waiting = serializers.IntegerField()
    oldestWaitingS = serializers.IntegerField(allow_null=True)


class TargetsHealthSerializer(serializers.Serializer[Any]):
    unhealthy = serializers.IntegerField()
    ejected = serializers.IntegerField()
    openCircuits = serializers.IntegerField()


class HealthSerializer(serializers.Serializer[Any]):
    """``status`` is ok, or degraded when no node is live, one is behind, or one has a problem, as its entry in
    ``/admin/nodes`` says. ``targets`` counts those of services with something wrong, on any host; the gateway is not
    degraded by them."""

    status = serializers.ChoiceField(choices=["ok", "degraded"])
    revision = serializers.IntegerField()
    database = serializers.CharField()
    nodes = NodesHealthSerializer()
    tasks = TasksHealthSerializer()
    targets = TargetsHealthSerializer()


class LivenessView(APIView):
    """The control process lives. It looks at nothing else, so it answers through any outage (rule 21)."""

    open_to = "everybody: that it lives is all that it tells"
    authentication_classes = []
    permission_classes = []

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        return Response({"status": "ok"})


class AdminHealthView(APIView):
    """The system's health, for admins."""

    resource = "system"

    @extend_schema(responses=HealthSerializer, operation_id="health", summary="Read health of the gateway")
    def get(self, request: Request) -> Response:
        revision = ConfigRevision.objects.aggregate(latest=Max("number"))["latest"] or 0
        live = list(live_nodes())
        behind = [node.pk for node in live if node.applied_revision < revision]
        problems = [node.pk for node in live if node.problems]
        nodes = {"live": len(live), "behind": behind, "withProblems": problems}
        status = "ok" if live and not behind and not problems else "degraded"
        document = {"status": status, "revision": revision, "database": connection.vendor, "nodes": nodes}
        return Response({**document, "tasks": _tasks(), "targets": trouble()})


def _tasks() -> dict[str, int | None]:
    waiting = QueuedTask.objects.filter(state=QueuedTask.State.QUEUED)
    oldest = waiting.aggregate(oldest=Min("accepted_at"))["oldest"]
    return {
        "waiting": waiting.count(),
        "oldestWaitingS": None if oldest is None else int((timezone.now() - oldest).total_seconds()),
    }


class OpenApiView(APIView):
    open_to = "everybody on the panel's port; on the gateway's, when DOCS_ON_GATEWAY_PORT says so"
    authentication_classes = []
    permission_classes = []

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        return HttpResponse(_openapi_document(), content_type="application/json")


@cache
def _openapi_document() -> bytes:
    """It costs a second to write and only changes with the code."""
    generator = SchemaGenerator()  # type: ignore[no-untyped-call]
    return orjson.dumps(generator.get_schema(request=None, public=True))  # type: ignore[no-untyped-call]


class _Page:
    """A page that loads nothing from elsewhere and runs no inline script."""

    policy: str

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response: HttpResponseBase = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
        response["Content-Security-Policy"] = self.policy
        return response


class SwaggerView(_Page, SpectacularSwaggerSplitView):
    open_to = OpenApiView.open_to
    authentication_classes = []
    permission_classes = []
    content_negotiation_class = DefaultContentNegotiation
    policy = _SWAGGER_POLICY
    template_name = "docs/swagger_ui.html"
    url_name = "openapi"


class RedocView(_Page, SpectacularRedocView):
    """With ``?script=`` the library itself, whose one picture from elsewhere is taken out."""

    open_to = OpenApiView.open_to
    authentication_classes = []
    permission_classes = []
    content_negotiation_class = DefaultContentNegotiation
    policy = _REDOC_POLICY
    template_name = "docs/redoc.html"
    url_name = "openapi"

    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if "script" in request.query_params:
            return HttpResponse(_redoc_script(), content_type="text/javascript")
        page: HttpResponseBase = super().get(request, *args, **kwargs)  # type: ignore[no-untyped-call]
        return page


@cache
def _redoc_script() -> bytes:
    path = find("drf_spectacular_sidecar/redoc/bundles/redoc.standalone.js")
    assert path is not None
    return Path(path).read_bytes().replace(b"https://cdn.redoc.ly/redoc/logo-mini.svg", b"data:,")
