"""What this app tells the ones above it, which it does not import."""

from django.dispatch import Signal

# A queue route is about to be named: ``tenant_id``, ``name``. A receiver raises ClientFault when the name is in use.
queue_route_naming = Signal()
