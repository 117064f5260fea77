"""Who may do what: applications, issuers of tokens, end users, administrators and their roles, and limits."""

from access.models.administrators import AdminAccount, AdminRole, Invitation
from access.models.applications import Application, EndpointWhitelist, PolicyBundle, SetupCompletion, everything
from access.models.end_users import EndUser, EndUserRole, RefreshToken, UserSession
from access.models.limits import AlertChannel, AlertMessage, LimitUse, LimitViolation, QuotaUse, RateLimit
from access.models.tokens import SigningKey, TokenIssuer, TokenRevocation

__all__ = [
    "AdminAccount",
    "AdminRole",
    "AlertChannel",
    "AlertMessage",
    "Application",
    "EndUser",
    "EndUserRole",
    "EndpointWhitelist",
    "Invitation",
    "LimitUse",
    "LimitViolation",
    "PolicyBundle",
    "QuotaUse",
    "RateLimit",
    "RefreshToken",
    "SetupCompletion",
    "SigningKey",
    "TokenIssuer",
    "TokenRevocation",
    "UserSession",
    "everything",
]
