"""The audit trail of what is no change of the configuration: logins, failures, exports, purges, replays (rule 23).

Changes of the configuration are revisions (`core.revisions`), which are their own trail. Both are append-only.
"""

from collections.abc import Mapping
from typing import Any

from core.masking import masked
from core.models import AuditEvent
from core.revisions import Actor

Outcome = AuditEvent.Outcome
_LONGEST_NAME = 200


def record(
    action: str,
    *,
    actor: Actor,
    source: str,
    outcome: str = Outcome.SUCCESS,
    object_kind: str = "",
    object_id: str = "",
    object_name: str = "",
    details: Mapping[str, Any] | None = None,
) -> AuditEvent:
    """Note what ``actor`` did, within the present transaction if there is one. ``action`` is a noun and a verb with a
    dot between (``session.login``); ``details`` hold JSON values and never a secret."""
    return AuditEvent.objects.create(
        tenant_id=actor.tenant_id,
        action=action,
        outcome=outcome,
        actor_kind=actor.kind,
        actor_id=actor.id,
        actor_name=actor.name,
        source=source,
        object_kind=object_kind,
        object_id=object_id,
        object_name=object_name[:_LONGEST_NAME],
        details=masked(details or {}),
        request_id=actor.request_id,
        address=actor.address,
    )
