# Commands of developers and of CI. Requires python3 (3.11 or newer) with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet
# Also applies to build requirements, unlike `pip install -c`.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# Packages whose code the tests run: clients, axe-core, a benchmark. They are installed without their
# dependencies, which conflict with those of this project.
PEERS := areal axe-playwright-python llamafactory ms-swift openrlhf rewardbench skyrl-gym verl
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Every process that a test starts would compile the project's modules again.
unexport PYTHONDONTWRITEBYTECODE

# Suppresses a message of Material for MkDocs about its successor.
export NO_MKDOCS_2_WARNING := 1

# Of make itself, for targets that take one core each.
PARALLEL := --no-print-directory --jobs=2 --output-sync=target

.PHONY: help demo serve test test-slow check format docs lock bench stress hold compat gpu-check real-weights demo-model clean
help: ## show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/base ## start the service on the demo model, score the sample pairs, stop it
	$(BIN)/python -m serve.cli.demo

serve: $(VENV)/base ## run the service in the foreground on the demo model
	$(BIN)/skyreward serve

test: $(VENV)/dev ## run the linters, the type checker and the tests
	@$(MAKE) $(PARALLEL) types style site $(VENV)/peers/.installed
	$(BIN)/python -m pytest -n auto --dist loadgroup -m 'not slow' --site=build/site

test-slow: $(VENV)/dev $(VENV)/peers/.installed ## run the tests that take long and go deeper
	$(BIN)/python -m pytest -n auto --dist loadgroup -m 'slow or hypothesis' --hypothesis-profile full

check: $(VENV)/dev ## run the linters and the type checker, build the documentation site
	@$(MAKE) $(PARALLEL) types style site

.PHONY: types style site
types:
	$(BIN)/mypy

style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/architecture/test_prose.py

site:
	$(BIN)/python -m mkdocs build --config-file .mkdocs.yml

format: $(VENV)/dev ## fix lint errors and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs ## build the documentation site into build/site
	$(BIN)/python -m mkdocs build --config-file .mkdocs.yml

# uv, because it resolves for other Python versions and platforms, which pip-tools does not.
lock: build/lock/bin/uv ## write the images' requirements with hashes, from constraints.txt
	printf '%s\n' hatchling flash-attn einops ninja psutil setuptools wheel | $< pip compile \
	  pyproject.toml - --extra quantization --extra reports --extra vision --constraints constraints.txt --generate-hashes \
	  --only-binary :all: --no-binary flash-attn --python-version 3.12 \
	  --python-platform x86_64-manylinux_2_28 --no-annotate --no-header --quiet \
	  --output-file build/lock/all.txt
	awk -v to=deploy/docker/ '/^[a-z]/ { file = "requirements.txt" } \
	  /^(torch|triton|cuda-.*|nvidia-.*)==/ { file = "torch.txt" } \
	  /^flash-attn==/ { file = "flash-attn.txt" } { print > (to file) }' build/lock/all.txt

build/lock/bin/uv: constraints.txt
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	@touch $@

bench: $(VENV)/dev ## compare throughput in one run (not part of the tests); BENCH=OPTIONS
	$(BIN)/python tests/bench/throughput.py --plots build/bench $(BENCH)

stress: $(VENV)/dev ## run stress tests: load, crashes, overload, attacks, malformed input; STRESS=OPTIONS
	$(BIN)/python tests/stress/run_all.py $(STRESS)

hold:
	@echo 'make hold is deprecated: use make stress STRESS=OPTIONS' >&2
	@$(MAKE) stress STRESS='$(HOLD)'

compat: $(VENV)/dev ## run the unit tests on the oldest and newest transformers that pyproject.toml admits
	$(BIN)/python tests/compat/run.py $(COMPAT)

gpu-check: ## run all checks that need CUDA, with the installed python3; report if there is no CUDA device
	$(PYTHON) tests/gpu/check.py

real-weights: $(VENV)/dev ## check rewards on real pretrained weights, which are downloaded; REAL=OPTIONS
	$(BIN)/python tests/real_weights/run.py $(REAL)

demo-model: $(VENV)/base ## retrain the demo model (less than 30 minutes on two cores); DATA=FOLDER
	$(BIN)/python -m seeds.demo.training.train --out seeds/demo $(if $(DATA),--data $(DATA))

clean: ## remove the virtual environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[reports]'
	@touch $@

$(VENV)/docs: $(VENV)/base
	$(INSTALL) --editable '.[docs]'
	@touch $@

# Has everything that the other two have.
$(VENV)/dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/base $(VENV)/docs $@

# pip says why a package cannot be installed; the tests that run its code are then skipped.
$(VENV)/peers/.installed: $(VENV)/bin/python constraints.txt
	for peer in $(PEERS); do \
	  $(INSTALL) --no-deps --upgrade --target $(VENV)/peers $$peer \
	    || echo "$$peer cannot be installed here: tests with its own code are skipped"; done
	@mkdir -p $(@D) && touch $@
