"""A page before the gate that says why somebody does not get in."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def gate_notice(request: HttpRequest, title: str, text: str, *, status: int = 403) -> HttpResponse:
    context = {"title": title, "text": text, "environment": settings.SERVICE_NAME}
    return render(request, "account/notice.html", context, status=status)
