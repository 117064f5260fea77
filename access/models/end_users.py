"""A24: people who log in at ``/auth/login`` and call services with the tokens that they get there."""

from django.db import models
from django.utils import timezone

from core.models import ConfigRow, TenantRow, prefixed_id


class EndUserRole(ConfigRow):
    """What users of a role may do, and how often. Tokens of the role from before ``tokens_from`` hold no longer."""

    kind = "end_user_role"
    unrecorded_fields = (*ConfigRow.unrecorded_fields, "tokens_from")

    id = prefixed_id("eur")
    name = models.CharField(max_length=63)
    description = models.CharField(max_length=300, blank=True)
    scopes = models.JSONField(default=list, blank=True)
    requests_per_hour = models.PositiveIntegerField(null=True, blank=True)  # for each user; none: not limited by role
    burst_limit = models.PositiveIntegerField(null=True, blank=True)
    tokens_from = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        db_table = "gateway_end_user_role"
        ordering = ("name",)
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="end_user_role_name_unique")]

    def __str__(self) -> str:
        return self.name


class EndUser(ConfigRow):
    """``password`` is a hash as Django keeps them. Tokens from before ``tokens_from`` hold no longer."""

    kind = "end_user"
    secret_fields = ("password",)
    unrecorded_fields = (*ConfigRow.unrecorded_fields, "last_login_at", "tokens_from")

    id = prefixed_id("usr")
    username = models.CharField(max_length=150)  # an e-mail address or a name; compared without regard to case
    name = models.CharField(max_length=150, blank=True)
    password = models.CharField(max_length=200, blank=True)
    role = models.CharField(max_length=63)  # the name of an `EndUserRole`
    is_active = models.BooleanField(default=True)
    must_change_password = models.BooleanField(default=False)
    last_login_at = models.DateTimeField(null=True, blank=True)
    tokens_from = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        db_table = "gateway_end_user"
        ordering = ("username",)
        constraints = [models.UniqueConstraint(fields=["tenant", "username"], name="end_user_name_unique")]

    def __str__(self) -> str:
        return self.username


class UserSession(TenantRow):
    """From a login to its end: the family of refresh tokens that come from one another."""

    id = prefixed_id("ses")
    user = models.ForeignKey(EndUser, on_delete=models.CASCADE, related_name="sessions")
    created_at = models.DateTimeField(default=timezone.now)
    last_used_at = models.DateTimeField(default=timezone.now)
    ends_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_why = models.CharField(max_length=40, blank=True)
    address = models.CharField(max_length=64, blank=True)
    user_agent = models.CharField(max_length=300, blank=True)

    class Meta:
        db_table = "gateway_user_session"
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.id}"


class RefreshToken(models.Model):
    """Works once. That it comes a second time says that somebody has stolen one: its session ends."""

    digest = models.CharField(primary_key=True, max_length=64)
    session = models.ForeignKey(UserSession, on_delete=models.CASCADE, related_name="refresh_tokens")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "gateway_refresh_token"
        indexes = [models.Index(fields=["expires_at"], name="refresh_token_expires")]

    def __str__(self) -> str:
        return f"a token of {self.session_id}"
