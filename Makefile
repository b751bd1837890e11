# make setup   the virtual environment, the stubs and an editable install; instant when nothing changed
# make demo    both services with the demo model
# make test    all tests, on as many processes as there are cores; ARGS=... for pytest
# make bench   ourselves beside every peer that is installed, see benchmarks/peers; ARGS='--cases C3 --cores 0,1'
# make lock    all lists of hashes anew, after a change of requirements.lock or of what pyproject.toml asks for
# make sbom    build/sbom.json, a CycloneDX list of all that is installed
# make check   formatting, lint, types, protos and layering
# make image-steps   every command of the Dockerfile, in clean folders; downloads torch, takes minutes
# TORCH=...    cpu or cuda: which build of torch
# PYTHON=...   the interpreter that makes the environment: 3.11 or newer

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Which build of torch: cpu where one lies in a folder of pip's, else PyPI's, which brings CUDA's libraries on Linux.
WHEELS := $(PIP_FIND_LINKS) $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
TORCH ?= $(if $(wildcard $(addsuffix /torch-*+cpu-*.whl,$(WHEELS))),cpu,cuda)
BIN := .venv/bin
STUBS := build/gen/.stamp
# The folders too, so that a removed file counts as a change.
PROTOS := $(shell find protos/diptych) protos/generate.py

.DEFAULT_GOAL := setup
ARGS ?=
.PHONY: setup protos demo test bench check format image-steps clean lock sbom
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

setup: .venv/.installed $(STUBS)
	@:

protos: $(STUBS)

.venv/.locked: requirements.lock requirements.hashes
	@test -x $(BIN)/python || { test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed.' >&2; exit 1; }; \
		$(PYTHON) -m venv .venv; }
	@$(BIN)/python deploy/lock.py --check || { echo 'Writing it anew; commit it too.' >&2; $(MAKE) lock; }
	@echo 'Installing requirements.lock into .venv ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements.hashes -r requirements-$(TORCH).hashes
	@touch $@

$(STUBS): .venv/.locked $(PROTOS)
	@$(BIN)/python protos/generate.py
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml | $(STUBS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(BIN)/python -m common.native >/dev/null 2>&1 || echo 'No kernels could be built; plain torch will compute.'
	@touch $(STUBS) $@

demo: setup
	@$(BIN)/python -m diptych.demo

test: setup
	@$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal $(ARGS)

bench: setup
	@$(BIN)/python -m benchmarks compare $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python -m pytest tests/test_layering.py -q

image-steps: setup
	@$(BIN)/python -m deploy.image_steps $(ARGS)

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

lock:
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^uv==' requirements.lock)
	@$(BIN)/python deploy/lock.py $(foreach folder,$(PIP_FIND_LINKS),--wheels $(folder))

sbom: setup
	@mkdir -p build
	@$(BIN)/uv tool run --quiet --system-certs --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml \
		--mc-type application --output-reproducible --of JSON -o build/sbom.json $(BIN)/python
	@echo build/sbom.json
