# Everything runs in .venv, which `make env` makes from a Python 3.11 to 3.13 and a package index.

PYTHON  ?= python3
PROFILE ?= laptop
PARTS   ?=
COVERAGE ?=
export PROBELIB_CACHE ?= $(CURDIR)/.cache

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.complete
TOOLS := $(VENV)/.complete-tools
# Not empty when somebody said which Python: the default may change under a complete environment.
GIVEN := $(filter command environment,$(firstword $(origin PYTHON)))
MINOR := -c 'import sys; print("%d.%d" % sys.version_info[:2])'

.DEFAULT_GOAL := help
.PHONY: help env tools interpreter lab book publish test lint format sync bench faults trust clean

help: ## show the targets
	@echo "Bayesian Probes"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make book PROFILE=smoke|laptop|paper   (default: laptop)"
	@echo "  make book ONLY=03    one chapter;   make book FROM=02    that one and all later ones"
	@echo "  make book FORCE=1    run again what has not changed, too"
	@echo "  make env PYTHON=/path/to/python3.12    another interpreter"
	@echo "  make test COVERAGE=1    and say which lines of probelib no test runs"

env: interpreter $(STAMP) ## make the environment in .venv, with what the book needs

tools: env $(TOOLS)

# Before anything is installed or reused: PYTHON exists, is of the right versions, and is the one
# that .venv has, unless .venv is complete and nobody asked for another.
interpreter:
ifneq (,$(GIVEN)$(if $(wildcard $(STAMP)),,incomplete))
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "error: there is no $(PYTHON); say which Python 3.11 to 3.13 to use: make env PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $(PYTHON) is $$("$(PYTHON)" -c 'import platform; print(platform.python_version())'), but this project needs Python 3.11 to 3.13: make env PYTHON=/path/to/python3" >&2; exit 1; }
	@test ! -x $(BIN)/python || { \
	  want=$$("$(PYTHON)" $(MINOR)); have=$$($(BIN)/python $(MINOR) 2>/dev/null || echo 'that does not run'); \
	  test "$$want" = "$$have" || { \
	    echo "error: $(VENV) has a Python $$have, but $(PYTHON) is $$want; remove $(VENV) first" >&2; exit 1; }; }
endif

# Two steps: the book needs neither the tests' tools nor the peers that they compare with.
$(STAMP): pyproject.toml book/pyproject.toml constraints.txt | interpreter
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { \
	  echo "error: $(PYTHON) could not make an environment (on Debian and Ubuntu, install python3-venv)" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --progress-bar off -e . -e "book[build]" -c constraints.txt
	@touch $@

$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --progress-bar off -e ".[test]" -c constraints.txt
	@touch $@

# Threads that wait at a barrier sleep rather than spin: three to twenty times as fast beside any
# other busy process. On a quiet machine it costs a little, so that nothing is measured with it.
book publish test: export OMP_WAIT_POLICY ?= passive

lab: env ## open the chapters in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

book: env ## run the chapters and render the book (PROFILE=laptop)
	$(BIN)/python book/driver.py --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(if $(FROM),--from $(FROM)) $(if $(FORCE),--force)

publish: env ## the same, and replace the published results (PROFILE=laptop|paper)
	$(BIN)/python book/driver.py --publish --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(if $(FROM),--from $(FROM)) $(if $(FORCE),--force)

test: tools lint ## lint, test, run every chapter small, build the book with warnings as errors
	$(BIN)/python -m pytest $(if $(COVERAGE),--cov=probelib)

lint: tools ## check the style and the types, and that notebooks and sources agree
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python book/pair.py --check

format: tools ## put the style right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

sync: env ## write the chapters' notebooks from their .py sources
	$(BIN)/python book/pair.py

bench: env ## measure speed against the alternatives (hours; PARTS="mnist small" for a part)
	$(BIN)/python -m pip install --progress-bar off -q -e ".[bench]" -c constraints.txt
	env -u OMP_WAIT_POLICY $(BIN)/python -W ignore benchmarks/run.py $(PARTS)

faults: tools ## kill, fill, damage and mislead a run, and count what is lost (PARTS="kills" for a part)
	$(BIN)/python -W ignore benchmarks/faults.py $(PARTS)

trust: env ## run probes of known truth, and count where the verdict is wrong
	OMP_WAIT_POLICY=passive $(BIN)/python -W ignore benchmarks/trust.py

clean: ## remove what was built (the environment and the cache stay)
	rm -rf book/notebooks book/_build book/_generated results/own results/live .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
