"""What Django's own admin does not show: it knows no audit trail, and factors and sessions are not its business."""

from allauth.account.models import EmailAddress, EmailConfirmation
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialToken
from allauth.usersessions.models import UserSession
from django.contrib import admin

_MODELS = (Authenticator, EmailAddress, EmailConfirmation, SocialAccount, SocialApp, SocialToken, UserSession)


def hide() -> None:
    for model in _MODELS:
        if admin.site.is_registered(model):
            admin.site.unregister(model)
