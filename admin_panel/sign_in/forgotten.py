"""Forgotten passwords: allauth's flow by a link that is mailed, where there is a mail server.

Whether an address is somebody's is looked up behind the answer, so that neither its words nor its time tell. The link
leads to ``PANEL_URL`` or where the panel listens, never to what the Host field of whoever asks says.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from queue import Full, Queue
from threading import Lock, Thread
from typing import Any

from allauth.account.forms import UserTokenForm, default_token_generator
from allauth.account.signals import password_reset
from allauth.account.utils import user_pk_to_url_str
from django import forms
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import close_old_connections
from django.http import HttpRequest
from django.urls import reverse

from access.administration.mail import send_password_link
from access.administration.rights import account_of, tenant_of
from access.administration.sessions import end_all_sessions
from admin_panel.sign_in import trail
from core.audit import Outcome, record
from core.revisions import Actor
from core.validation import is_storable

_MOST_WAITING = 100
_ONE_MAIL_EACH_S = 300
_NOBODY = "no active administrator with a password has this address"
_LOG = logging.getLogger(__name__)


class Behind:
    """Work that no answer waits for, one piece after another, and no stop of the process either."""

    def __init__(self) -> None:
        self._waiting: Queue[Callable[[], None]] = Queue(_MOST_WAITING)
        self._starting = Lock()
        self._thread: Thread | None = None

    def run(self, work: Callable[[], None]) -> None:
        try:
            self._waiting.put_nowait(work)
        except Full:
            _LOG.warning("too many ask for new passwords at once: one is not answered")
        with self._starting:
            if self._thread is None:
                self._thread = Thread(target=self._work, name="forgotten passwords", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            work = self._waiting.get()
            close_old_connections()
            try:
                work()
            except Exception as error:  # whoever asked has their answer; the next one waits
                _LOG.warning("a link to a new password could not be made: %s", type(error).__name__)
            finally:
                close_old_connections()


BEHIND = Behind()


class ForgottenForm(forms.Form):
    """Stands in for allauth's, which looks the address up before it answers."""

    use_required_attribute = False
    email = forms.EmailField(
        label="E-mail",
        max_length=150,
        widget=forms.EmailInput(attrs={"class": "form-control", "autocomplete": "email"}),
    )

    def save(self, request: HttpRequest, **_: Any) -> str:
        email: str = self.cleaned_data["email"]
        BEHIND.run(partial(_send_link, email, trail.actor_of(request, name=email)))
        return email


class TokenForm(UserTokenForm):
    """A token opens nothing for whom none would be made any more."""

    def _get_user(self, uidb36: str | None) -> User | None:
        user = super()._get_user(uidb36) if uidb36 else None
        return user if user is not None and may_reset(user) else None


def may_reset(user: User) -> bool:
    """Whoever signs in by a password. An account without one is let in by an identity provider, or not at all."""
    return user.is_active and user.is_staff and user.has_usable_password()


def user_at(email: str) -> User | None:
    """Two users with one address are nobody's by that address."""
    found = list(User.objects.filter(email__iexact=email)[:2]) if is_storable(email) else []
    return found[0] if len(found) == 1 and may_reset(found[0]) else None


def _send_link(email: str, actor: Actor) -> None:
    user = user_at(email)
    if user is None:
        _note(actor, _NOBODY)
        return
    actor = replace(actor, tenant_id=tenant_of(account_of(user)))
    lately = f"password-link:{user.pk}"
    if not cache.add(lately, 1, _ONE_MAIL_EACH_S):
        _note(actor, "a link was mailed within the last five minutes", Outcome.DENIED)
        return
    code = f"{user_pk_to_url_str(user)}-{default_token_generator.make_token(user)}"
    if send_password_link(user.email, user.get_username(), _link(code)):
        _note(actor, "", Outcome.SUCCESS)
    else:
        cache.delete(lately)
        _note(actor, "the mail could not be sent")


def _link(code: str) -> str:
    """The code stands behind the #: browsers send that to nobody, so no log and no proxy gets to see it."""
    base = settings.PANEL_URL or f"http://{settings.PANEL_BIND}:{settings.ADMIN_PORT}"
    return f"{base}{reverse('password_link')}#{code}"


def _note(actor: Actor, reason: str, outcome: str = Outcome.FAILURE) -> None:
    details = {"reason": reason} if reason else {}
    record("password.reset_asked", actor=actor, source=trail.SOURCE, outcome=outcome, details=details)


def _password_reset(request: HttpRequest, user: User, **_: Any) -> None:
    end_all_sessions(user)
    trail.password_reset(request, user)


def listen() -> None:
    """Called once, when the app is ready."""
    password_reset.connect(_password_reset, dispatch_uid="forgotten passwords")
