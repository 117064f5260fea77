"""Mails to people who administer the gateway or are to, where EMAIL_URL names a server."""

import logging
import smtplib

from django.conf import settings
from django.core.mail import send_mail

from access.models import Invitation

_LOG = logging.getLogger(__name__)
_INVITATION = """{inviter} invites you to administer the gateway {service}.

Open this link to choose a name and a password. It works once, until {expires}:

{link}

If you did not expect this, do nothing.
"""
_NEW_ONE = """Somebody, probably you, asked for a new password for {username} at the gateway {service}.

Open this link to choose one. It works once, within {minutes} minutes:

{link}

If you did not ask, do nothing: your password stays as it is.
"""


def send_invitation(invitation: Invitation, link: str) -> bool:
    """Whether it was sent. That it was not is no reason to have no invitation: the link can be passed on otherwise."""
    if not settings.MAILS:
        return False
    text = _INVITATION.format(
        inviter=invitation.invited_by or "An administrator",
        service=settings.SERVICE_NAME,
        expires=f"{invitation.expires_at:%d %B %Y, %H:%M} UTC",
        link=link,
    )
    return _sent(f"Invitation to {settings.SERVICE_NAME}", text, invitation.email)


def send_password_link(email: str, username: str, link: str) -> bool:
    """Whether it was sent."""
    text = _NEW_ONE.format(
        username=username,
        service=settings.SERVICE_NAME,
        minutes=settings.PASSWORD_RESET_TIMEOUT // 60,
        link=link,
    )
    return _sent(f"A new password for {settings.SERVICE_NAME}", text, email)


def _sent(subject: str, text: str, to: str) -> bool:
    try:
        send_mail(subject, text, None, [to])
    except (smtplib.SMTPException, OSError) as error:
        _LOG.warning("a mail could not be sent: %s", type(error).__name__)
        return False
    return True
