"""Our Celery app: the relay publishes with it, and the events worker runs it.

    celery -A gateway_project.celery_app worker -Q gateway.events --without-gossip --without-mingle

Django is set up by Celery's own fixup, so nothing here may import a model.
"""

import os

from django.conf import settings

from queues.broker import make_app

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
os.environ.setdefault("CELERY_SKIP_CHECKS", "true")  # Django's system checks would load the panel and the admin API
app = make_app(settings.CELERY_BROKER_URL, settings.VAR_DIR / "broker", settings.EVENTS_QUEUE)
