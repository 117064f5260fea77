"""Sign in and out."""

from django.conf import settings
from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from admin_panel import throttle


@never_cache
@sensitive_post_parameters("password")
@require_http_methods(["GET", "HEAD", "POST"])
def sign_in(request: HttpRequest) -> HttpResponse:
    after = _safe_next(request)
    if request.method != "POST":
        if request.user.is_active and request.user.is_staff:
            return HttpResponseRedirect(after)
        return _form(request, after)
    username, password = request.POST.get("username", ""), request.POST.get("password", "")
    address = throttle.client_address(request)
    if throttle.is_held_back(address, username):
        minutes = throttle.WINDOW_S // 60
        error = f"Too many failed attempts. Wait up to {minutes} minutes and try again."
        return _form(request, after, username, error, status=429)
    user = _staff(request, username, password)
    if user is None:
        throttle.note_failure(address, username)
        return _form(request, after, username, "User name and password do not match an admin account.", status=422)
    throttle.forget_account(username)
    login(request, user)
    return HttpResponseRedirect(after)


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect(settings.LOGIN_URL)


def _staff(request: HttpRequest, username: str, password: str) -> User | None:
    if "\x00" in username or len(username) > 150:
        return None
    user = authenticate(request, username=username, password=password)
    return user if isinstance(user, User) and user.is_staff else None


def _form(request: HttpRequest, after: str, username: str = "", error: str = "", status: int = 200) -> HttpResponse:
    context = {"next": after, "username": username, "error": error, "environment": settings.SERVICE_NAME}
    response = render(request, "admin_panel/account/sign_in.html", context, status=status)
    if status == 429:
        response.headers["Retry-After"] = str(throttle.WINDOW_S)
    return response


def _safe_next(request: HttpRequest) -> str:
    """Only an address of this panel: anything else leads home."""
    wanted = request.POST.get("next") or request.GET.get("next") or ""
    is_ours = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if is_ours and wanted.startswith("/") else "/"
