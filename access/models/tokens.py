"""Tokens that others issue, tokens that we issue, and those that hold no longer."""

from django.db import models
from django.utils import timezone

from access.models.applications import Application
from core.models import ConfigRow, TenantRow, prefixed_id


class TokenIssuer(ConfigRow):
    """Whose tokens clients may bring. ``rules`` is an `access.policies.TokenRules`; requests with its tokens are those
    of ``application``, unless a claim names another."""

    kind = "issuer"

    id = prefixed_id("iss")
    name = models.CharField(max_length=100)
    issuer = models.CharField(max_length=500)  # the claim iss, octet for octet
    application = models.ForeignKey(
        Application, null=True, blank=True, on_delete=models.PROTECT, related_name="token_issuers"
    )
    rules = models.JSONField(default=dict)
    is_active = models.BooleanField(default=True)

    class Meta:
        db_table = "gateway_token_issuer"
        ordering = ("name",)
        constraints = [
            models.UniqueConstraint(fields=["tenant", "name"], name="token_issuer_name_unique"),
            models.UniqueConstraint(fields=["issuer"], name="token_issuer_unique"),
        ]

    def __str__(self) -> str:
        return self.name


class SigningKey(ConfigRow):
    """A key that signs the tokens of end users. ``sealed`` is the private one, encrypted under SECRET_KEY."""

    kind = "signing_key"
    secret_fields = ("sealed",)

    id = prefixed_id("sig")  # the kid
    algorithm = models.CharField(max_length=10)
    public_jwk = models.JSONField()
    sealed = models.TextField()
    signs_from = models.DateTimeField(default=timezone.now)  # published before, so that verifiers know it
    retired_at = models.DateTimeField(null=True, blank=True)  # published on while tokens of it may live
    revoked_at = models.DateTimeField(null=True, blank=True)  # nothing that it signed counts

    class Meta:
        db_table = "gateway_signing_key"
        ordering = ("signs_from",)

    def __str__(self) -> str:
        return f"{self.id}"


class TokenRevocation(TenantRow):
    """Tokens of our own that hold no longer. Workers hear of it by the feed, within a second (rule 21).

    ``session``: those of a session (the claim sid); ``user``: those of a user (sub) from before ``before``; ``role``:
    likewise those of a role; ``token``: one (jti). Forgotten after ``until``, when all of them have expired.
    """

    class Kind(models.TextChoices):
        SESSION = "session"
        USER = "user"
        ROLE = "role"
        TOKEN = "token"  # noqa: S105

    number = models.BigAutoField(primary_key=True)
    what = models.CharField(max_length=7, choices=Kind.choices)
    value = models.CharField(max_length=100)
    before = models.DateTimeField(default=timezone.now)
    until = models.DateTimeField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "gateway_token_revocation"
        ordering = ("number",)
        indexes = [models.Index(fields=["until"], name="token_revocation_until")]

    def __str__(self) -> str:
        return f"{self.what} {self.value}"
