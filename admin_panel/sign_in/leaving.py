"""Leaving for an identity provider and coming back, under a strict policy and with strict cookies."""

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render


def leaving(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """A redirect as a page that leads on by itself.

    Browsers hold ``form-action 'self'`` against redirects that follow a form too, and send no SameSite=Strict cookie
    along with a redirect that another site began. A page of ours is neither.
    """
    if not isinstance(response, HttpResponseRedirect):
        return response
    page = render(request, "socialaccount/login_redirect.html", {"redirect_to": response.url})
    page.cookies.update(response.cookies)
    return page
