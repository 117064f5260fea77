"""Loaded as a plugin before Django's settings: finds the servers that tests talk to and says so in the environment."""

import os
import tempfile

os.environ["PORTCULLIS_TESTING"] = "true"
os.environ.setdefault("SECRET_KEY", "a secret key for tests only, long enough")
os.environ.setdefault("DATABASE_URL", os.environ.get("TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres"))
os.environ.setdefault("REDIS_URL", os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15"))
os.environ.setdefault("CELERY_BROKER_URL", os.environ.get("TEST_BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//"))
os.environ.setdefault("VAR_DIR", tempfile.mkdtemp(prefix="portcullis-test-"))
os.environ.setdefault("ARGON2_MEMORY_KIB", "64")
os.environ.setdefault("ARGON2_TIME_COST", "1")
os.environ.setdefault("EGRESS_ALLOW", "127.0.0.0/8,::1/128")
