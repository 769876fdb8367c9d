# Everything a person types, and what CI runs. Needs python3 (3.11 or newer) with venv and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Also for the build's own requirements, which `pip install -c` does not reach.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
# Whose own code the tests run: clients, axe-core, a benchmark. What they need has no place beside us.
PEERS := axe-playwright-python llamafactory ms-swift openrlhf rewardbench verl
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Material for MkDocs writes about its successor otherwise.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo serve test check format docs lock bench stress hold gpu-check real-weights demo-model clean
help: ## show this
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/base ## start the service on the demo model, score the sample pairs, stop it
	$(BIN)/python -m serve.cli.demo

serve: $(VENV)/base ## run the service in the foreground on the demo model
	$(BIN)/skyreward serve

test: check ## linters, types and all tests
	$(BIN)/python -m pytest -n auto tests/unit tests/architecture tests/gpu
	$(BIN)/python -m pytest -m ray tests/service
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not ray' tests/service

check: $(VENV)/dev ## linters, types and the documentation site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m mkdocs build --config-file .mkdocs.yml

format: $(VENV)/dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs ## build the documentation site into build/site
	$(BIN)/python -m mkdocs build --config-file .mkdocs.yml

# uv, since it resolves for another Python and machine than this one, which pip-tools does not.
lock: build/lock/bin/uv ## pin what images install, by hashes, from constraints.txt
	printf '%s\n' hatchling flash-attn einops ninja psutil setuptools wheel | $< pip compile \
	  pyproject.toml - --extra quantization --extra reports --constraints constraints.txt --generate-hashes \
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

bench: $(VENV)/base ## timings, side by side in one run; never part of the tests
	$(BIN)/python tests/bench/throughput.py --plots build/bench $(BENCH)

stress: $(VENV)/dev ## stress tests: load, crashes, overload, attacks, malformed input; STRESS=OPTIONS
	$(BIN)/python tests/stress/run_all.py $(STRESS)

hold:
	@echo 'make hold is deprecated: use make stress STRESS=OPTIONS' >&2
	@$(MAKE) stress STRESS='$(HOLD)'

gpu-check: ## every check that needs CUDA, with the python at hand; says so where there is none
	$(PYTHON) tests/gpu/check.py

real-weights: $(VENV)/dev ## rewards on real pre-trained weights, fetched into a cache folder; REAL=OPTIONS
	$(BIN)/python tests/real_weights/run.py $(REAL)

demo-model: $(VENV)/base ## train the demo model again (under 30 minutes on two cores); DATA=FOLDER
	$(BIN)/python -m seeds.demo.training.train --out seeds/demo $(if $(DATA),--data $(DATA))

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --editable '.[reports]'
	@touch $@

$(VENV)/docs: $(VENV)/base
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/pip install --quiet --editable '.[dev]'
	@for peer in $(PEERS); do \
	  $(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/peers $$peer 2>/dev/null \
	    || echo "$$peer cannot be installed here: tests with its own code are skipped"; done
	@touch $@
