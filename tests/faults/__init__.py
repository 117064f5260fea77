"""Targets that fail under load: run by ``make test-faults``, not by ``make test``."""
