"""Mails to people who are to administer the gateway, where EMAIL_URL names a server."""

import logging
import smtplib

from django.conf import settings
from django.core.mail import send_mail

from access.models import Invitation

_LOG = logging.getLogger(__name__)
_TEXT = """{inviter} invites you to administer the gateway {service}.

Open this link to choose a name and a password. It works once, until {expires}:

{link}

If you did not expect this, do nothing.
"""


def send_invitation(invitation: Invitation, link: str) -> bool:
    """Whether it was sent. That it was not is no reason to have no invitation: the link can be passed on otherwise."""
    if not settings.MAILS:
        return False
    text = _TEXT.format(
        inviter=invitation.invited_by or "An administrator",
        service=settings.SERVICE_NAME,
        expires=f"{invitation.expires_at:%d %B %Y, %H:%M} UTC",
        link=link,
    )
    try:
        send_mail(f"Invitation to {settings.SERVICE_NAME}", text, None, [invitation.email])
    except (smtplib.SMTPException, OSError) as error:
        _LOG.warning("an invitation could not be mailed: %s", type(error).__name__)
        return False
    return True
