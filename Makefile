# Every target works from a fresh clone: `make help` lists them.
SHELL := /bin/bash
PY := .venv/bin/python
STUBS := specfleet/v1

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv (torch first, from constraints.txt)"
	@python3 -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

.PHONY: install
install: .venv/installed  ## create .venv and install everything

.PHONY: native
native: install  ## the scheduler as machine code, where there is a C compiler (part of make demo and make test)
	@.venv/bin/specfleet native --if-possible >/dev/null

.PHONY: demo
demo: native  ## a verifier and two drafters on loopback, one streamed completion (PROMPT="…")
	@.venv/bin/specfleet demo $(if $(PROMPT),--prompt "$(PROMPT)")

.PHONY: up
up: install  ## the demo's fleet, left running, with Prometheus where it is installed
	@.venv/bin/specfleet demo --stay

.PHONY: test
test: native  ## the whole suite: what needs no daemons on both cores, then the rest
	@OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --ignore tests/integration
	@$(PY) -m pytest tests/integration

.PHONY: lossless
lossless: install  ## the whole losslessness grids (long)
	@$(PY) -m pytest -m lossless tests/integration

.PHONY: lint
lint: install  ## ruff, import layers, dashboards
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports
	@$(PY) -m deploy.grafana.generate --check

.PHONY: fix-lint
fix-lint: install  ## let ruff mend what it can
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

.PHONY: typecheck
typecheck: install  ## mypy
	@$(PY) -m mypy

.PHONY: properties
properties: install  ## 10,000 random histories of the scheduler, 300 worlds by brute force (make test runs 60 and 20)
	@SPECFLEET_EXAMPLES=10000 $(PY) -m pytest tests/properties/test_scheduler.py tests/unit/test_policies.py --timeout 7200 -q

.PHONY: nightly
nightly: install  ## 2,000 worlds of crashes, partitions and drains (make test plays 200; SPECFLEET_SEED=N plays one)
	@SPECFLEET_SEEDS=2000 $(PY) -m pytest tests/simulation/test_faults.py --timeout 7200 -q

.PHONY: fuzz
fuzz: install  ## hostile messages and HTTP bodies: by coverage a minute each, by structure 20,000, to live daemons 100,000
	@.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	@set -o pipefail; for name in VerifyRequest GenerateRequest VerifyResponse GenerateResponse; do \
	  echo "== $$name"; $(PY) tests/fuzz/fuzz_wire.py $$name -max_total_time=60 -print_final_stats=1 2>&1 | tail -n 8 || exit 1; done
	@set -o pipefail; echo "== HTTP bodies"; $(PY) tests/fuzz/fuzz_http.py -max_total_time=60 -print_final_stats=1 2>&1 | tail -n 8
	@SPECFLEET_EXAMPLES=20000 $(PY) -m pytest tests/properties/test_fuzz.py tests/properties/test_fuzz_http.py --timeout 7200 -q
	@SPECFLEET_HOSTILE=100000 $(PY) -m pytest tests/integration/test_hostile.py --timeout 7200 -q

.PHONY: soak
soak: install  ## 32 streams while daemons are killed 20 times, partitions, 20 minutes of mixed load (make test: less of each)
	@SPECFLEET_SOAK=1 $(PY) -m pytest tests/integration/test_survival.py tests/integration/test_partition.py --timeout 3600 -q
	@SPECFLEET_SOAK_SECONDS=1200 $(PY) -m pytest tests/integration/test_soak.py --timeout 3600 -q -s

.PHONY: wheel-check
wheel-check: install  ## build the wheel, install it in a clean environment, use it against a live fleet
	@$(PY) -m pytest -m wheel tests/integration/test_wheel.py

.PHONY: protos
protos: install  ## regenerate specfleet/v1 from protos/
	@$(PY) protos/generate.py

.PHONY: verify-protos
verify-protos: install  ## fail if specfleet/v1 is not what protos/ generates (mend with `make protos`)
	@$(PY) protos/generate.py --check

.PHONY: dashboards
dashboards: install  ## write Grafana's dashboards and the operator's rules anew (make lint checks that they are up to date)
	@$(PY) -m deploy.grafana.generate

.PHONY: commands
commands: install  ## write docs/commands.md anew from --help (make test checks that it is up to date)
	@$(PY) docs/commands.py

.PHONY: bench
bench: install  ## the quick benchmarks; writes their tables into docs/results.md (some ten minutes)
	@$(PY) benchmarks/run.py

.PHONY: clean
clean:  ## remove what the other targets made
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
