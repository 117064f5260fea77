"""Versions of a service and their targets."""

from typing import Any

from django.http import HttpResponse
from django.views.decorators.http import require_http_methods, require_POST

from admin_panel.forms import TargetForm, VersionForm
from admin_panel.pages import PanelRequest, go_to, not_found
from admin_panel.saving import Signature, confirm, edit, saving
from routing import services as use_cases
from routing.models import ServiceConfig, ServiceTarget, ServiceVersion

_FORM = "admin_panel/services/version_form.html"
_TARGET_FORM = "admin_panel/services/target_form.html"


@require_http_methods(["GET", "HEAD", "POST"])
def version_new(request: PanelRequest, pk: str) -> HttpResponse:
    service = ServiceConfig.objects.filter(pk=pk).first()
    if service is None:
        return not_found(request, "service")
    is_first = not service.versions.exists()

    def save(changes: dict[str, Any], _: int | None, signed: Signature) -> ServiceVersion:
        return use_cases.create_version(service=service, **changes, **signed)

    return edit(
        request,
        VersionForm,
        _FORM,
        save=save,
        done=lambda _: go_to("service", pk),
        initial={"weight": 100 if is_first else 0, "is_active": True},
        context={"service": service},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def version_edit(request: PanelRequest, pk: str) -> HttpResponse:
    version = _version(pk)
    if version is None:
        return not_found(request, "version")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> ServiceVersion:
        return use_cases.update_version(version=version, changes=changes, if_revision=began, **signed)

    return edit(
        request,
        VersionForm,
        _FORM,
        row=version,
        save=save,
        done=lambda _: go_to("service", version.service_id),
        context={"service": version.service},
    )


@require_POST
def version_switch(request: PanelRequest, pk: str) -> HttpResponse:
    version = _version(pk)
    if version is None:
        return not_found(request, "version")
    changes = {"is_active": request.POST.get("active") == "true"}
    with saving(request) as signed:
        use_cases.update_version(version=version, changes=changes, **signed)
    return go_to("service", version.service_id)


@require_http_methods(["GET", "HEAD", "POST"])
def version_delete(request: PanelRequest, pk: str) -> HttpResponse:
    version = _version(pk)
    if version is None:
        return not_found(request, "version")
    context = {
        "version": version,
        "targets": version.targets.count(),
        "routes": list(version.service.routes.filter(version=version.version).order_by("name")),
    }
    return confirm(
        request,
        "admin_panel/services/version_delete.html",
        act=lambda signed: use_cases.delete_version(version=version, **signed),
        done=lambda: go_to("service", version.service_id),
        context=context,
    )


@require_http_methods(["GET", "HEAD", "POST"])
def target_new(request: PanelRequest, pk: str) -> HttpResponse:
    version = _version(pk)
    if version is None:
        return not_found(request, "version")

    def save(changes: dict[str, Any], _: int | None, signed: Signature) -> ServiceTarget:
        return use_cases.create_target(version=version, **changes, **signed)

    return edit(
        request,
        TargetForm,
        _TARGET_FORM,
        save=save,
        done=lambda _: go_to("service", version.service_id),
        initial={"is_active": True},
        context={"version": version},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def target_edit(request: PanelRequest, pk: str) -> HttpResponse:
    target = _target(pk)
    if target is None:
        return not_found(request, "target")

    def save(changes: dict[str, Any], began: int | None, signed: Signature) -> ServiceTarget:
        return use_cases.update_target(target=target, changes=changes, if_revision=began, **signed)

    return edit(
        request,
        TargetForm,
        _TARGET_FORM,
        row=target,
        save=save,
        done=lambda _: go_to("service", target.version.service_id),
        context={"version": target.version},
    )


@require_http_methods(["GET", "HEAD", "POST"])
def target_delete(request: PanelRequest, pk: str) -> HttpResponse:
    target = _target(pk)
    if target is None:
        return not_found(request, "target")
    return confirm(
        request,
        "admin_panel/services/target_delete.html",
        act=lambda signed: use_cases.delete_target(target=target, **signed),
        done=lambda: go_to("service", target.version.service_id),
        context={"target": target, "others": target.version.targets.exclude(pk=pk).filter(is_active=True).count()},
    )


def _version(pk: str) -> ServiceVersion | None:
    return ServiceVersion.objects.select_related("service").filter(pk=pk).first()


def _target(pk: str) -> ServiceTarget | None:
    return ServiceTarget.objects.select_related("version__service").filter(pk=pk).first()
