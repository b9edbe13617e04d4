# Paths are relative throughout, so that the repository may lie anywhere, also below a folder with a space in its name.

# The system's own Python where it will do, else the path's: distributions optimise theirs by profile, pyenv does not by itself, and a model
# call costs a tenth more then (docs/operating/scaling.md).
PYTHON ?= $(shell for each in /usr/bin/python3 python3; do \
  $$each -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && exit; done; echo python3)
PY := .venv/bin/python
EXTRAS := ledger,pricing,subscriptions,proxy,local,dev
READY := .venv/.ready
# Further arguments for pytest, and the process whose log to show.
ARGS ?=
NAME ?=
# How long to simulate.
SECONDS ?= 60
SEED ?=
# What is deployed where: `make deploy-ledger OVERLAY=production TAG=0.2.0`. The project's version and the overlay's tag else.
OVERLAY ?= dev
TAG ?=
N ?=
DOCKER ?= docker
# Where images are pushed to, if anywhere: before their names.
REGISTRY ?=

.DEFAULT_GOAL := help
.PHONY: help setup up down status logs demo protos reference lock images fmt lint types test check litellm simulate
.PHONY: bench-ledger bench-pricing bench-gateway bench-subscriptions

help:
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z%-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile

##@ Run the whole suite on this machine
setup: $(READY) ## install everything into .venv (needs Python 3.11 or later, and make)
	@echo ".venv is ready"

up: $(READY) ## start what is not running, wait until all of it serves
	@$(PY) -m deploy.local up

down: $(READY) ## stop it; what it keeps in .local stays
	@$(PY) -m deploy.local down

status: $(READY) ## show each process, its port and its health
	@$(PY) -m deploy.local status

logs: $(READY) ## show the logs' last lines; NAME=ledger for one, ARGS=-f to follow
	@$(PY) -m deploy.local logs $(NAME) $(ARGS)

demo: $(READY) ## make a unary and a streamed model call, show what they cost
	@$(PY) -m deploy.local demo

##@ Change it
protos: $(READY) ## generate protos/gen and the OpenAPI document from the contracts
	$(PY) -m protos.build
	$(PY) -m gateway.openapi

reference: $(READY) ## write the reference pages that follow from the code
	$(PY) -m docs.reference

lock: $(READY) ## resolve requirements.lock anew from pyproject.toml, and each image's part of it
	.venv/bin/uv pip compile --quiet --universal --generate-hashes --all-extras --python-version 3.11 \
	  --no-emit-index-url --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml
	$(PY) -m deploy.images

fmt: $(READY) ## format, and correct what can be corrected by itself
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

##@ Check it
lint: $(READY) ## style, contracts, imports between services, generated code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m protos.build --check
	$(PY) -m protos.lint
	$(PY) -m gateway.openapi --check
	$(PY) -m docs.reference --check
	$(PY) -m deploy.images --check
	.venv/bin/hadolint services/*/Dockerfile gateway/Dockerfile
	$(PY) .venv/bin/lint-imports

types: $(READY) ## mypy, strict
	$(PY) -m mypy

test: $(READY) ## all tests, against real Postgres, Redis and Envoy; ARGS='-k name' for some
	$(PY) -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder --durations 20 $(ARGS)

check: lint types test ## everything that continuous integration checks

litellm: $(READY) ## LiteLLM as a client of the suite that is up, in an environment of its own (two minutes the first time)
	@test -x .local/litellm/bin/litellm || { $(PYTHON) -m venv .local/litellm && .local/litellm/bin/pip install --quiet litellm==1.106.2 mcp; }
	@set -a; . "$${TOLLKEEPER_HOME:-.local}/dev.env"; .local/litellm/bin/python -m tests.clients.litellm_client

simulate: $(READY) ## ledgers under attack, held against their shadow; SECONDS=600, SEED=n for one run again
	$(PY) -m tests.simulation --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

##@ Deploy it: NAME is ledger, pricing, subscriptions, proxy or gateway; deploy/kubernetes/README.md
images: $(READY) ## write each image's requirements from requirements.lock
	$(PY) -m deploy.images

image-%: ## build the image of NAME; TAG=0.2.0, else the project's version
	$(DOCKER) build --file $(or $(firstword $(wildcard services/$*/Dockerfile $*/Dockerfile)),$(error There is no image of $*: NAME is ledger, pricing, subscriptions, proxy or gateway)) \
	  --tag $(if $(REGISTRY),$(REGISTRY)/)tollkeeper-$*:$(or $(TAG),$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)) .

deploy-%: $(READY) ## migrate NAME's database, roll it out, wait; OVERLAY=production, TAG=0.2.0
	@$(PY) -m deploy.kubernetes deploy $* --overlay $(OVERLAY) $(if $(TAG),--tag $(TAG))

rollback-%: $(READY) ## run NAME's release before this one again; OVERLAY=production
	@$(PY) -m deploy.kubernetes rollback $* --overlay $(OVERLAY)

scale-%: $(READY) ## have at least N of NAME; N=4, OVERLAY=production
	@$(PY) -m deploy.kubernetes scale $* --overlay $(OVERLAY) --least $(or $(N),$(error How many? make scale-$* N=4))

##@ Measure it
bench-ledger: $(READY) ## the ledger beside pgbench and a bare gRPC echo; ARGS=--quick or --large
	@$(PY) -m tests.bench.ledger $(ARGS)

bench-pricing: $(READY) ## a cost in process and over gRPC
	@$(PY) -m tests.bench.pricing $(ARGS)

bench-gateway: $(READY) ## model calls through all of it beside a bare Envoy; ARGS=--quick, --memory, --profile
	@$(PY) -m tests.bench.gateway $(ARGS)

bench-subscriptions: $(READY) ## webhooks taken in, usage metered, quotas checked; ARGS=--quick
	@$(PY) -m tests.bench.subscriptions $(ARGS)

# Up to date until the requirements change. The last step makes `services` and `tollkeeper` importable from here.
$(READY): pyproject.toml $(wildcard requirements.lock)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, {sys.executable} is {sys.version}")'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@if [ -f requirements.lock ]; \
	  then $(PY) -m pip install --disable-pip-version-check --quiet --require-hashes --requirement requirements.lock; \
	  else $(PY) -m pip install --disable-pip-version-check --quiet --editable '.[$(EXTRAS)]'; fi
	@$(PY) -c 'import os, pathlib, sysconfig; \
	  pathlib.Path(sysconfig.get_path("purelib"), "tollkeeper-checkout.pth").write_text(f"{os.getcwd()}\n{os.getcwd()}/protos/gen\n")'
	@touch $(READY)
