"""What this app does when rows of others go."""

from typing import Any

from django.contrib.auth.models import User
from django.db.models.signals import pre_delete
from django.dispatch import receiver

from core.revisions import Actor, revision


@receiver(pre_delete, sender=User)
def end_admin_keys(instance: User, **_: Any) -> None:
    """A cascade would take the keys without a word to the history and to the gateways.

    Whoever deletes a user does so inside a revision of theirs (`keys.admin`); code that does not is the actor itself.
    """
    reason = f"The user {instance.get_username()} was deleted."
    with revision(actor=Actor("command"), source="command", reason=reason) as change:
        for key in instance.admin_keys.all():
            change.delete(key)
