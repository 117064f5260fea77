"""What this app does when rows of others go."""

from typing import Any

from django.contrib.auth.models import User
from django.db.models.signals import pre_delete
from django.dispatch import receiver

from access.models import AdminAccount
from core.revisions import Actor, revision


@receiver(pre_delete, sender=User)
def end_account(instance: User, **_: Any) -> None:
    """A cascade would take the account without a word to the history. Whoever deletes a user does so inside a revision
    of theirs; code that does not is the actor itself."""
    account = AdminAccount._base_manager.filter(user_id=instance.pk).first()
    if account is None:
        return
    reason = f"The user {instance.get_username()} was deleted."
    with revision(actor=Actor("command"), source="command", reason=reason) as change:
        change.delete(account)
