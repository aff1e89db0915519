# `make demo` runs two whole facilities and a stream between them; `make test` runs the tests.
# Whatever a command needs is installed into .venv first. ARGS is handed on:
#   make demo ARGS='--json'        make test ARGS='-k single'

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test help test-unit coverage-e2e test-e2e test-long test-all model fuzz lint docs man changes hooks bench \
    wheel install deb clean

demo: $(VENV)/.installed  ## Stream through two whole facilities on this machine.
	@$(BIN)/scistream demo $(ARGS)

# Hundreds of processes would compile the same modules, and each worker would rewrite all tests.
unexport PYTHONDONTWRITEBYTECODE

# The tests wait more than they work, so several files run at once, in the order that tests/conftest.py gives them; in the
# order of their numbers of tests the longest ones would be last, and the end would wait for one.
RUN := pytest -n 5 --dist loadfile --no-loadscope-reorder
PYTEST := $(BIN)/python -m $(RUN)

test: $(VENV)/.installed-test  ## Run the tests, or those that ARGS names.
	$(PYTEST) $(ARGS)

help:  ## Show this list.
	@sed -n 's/^\([a-z0-9-]*\):[^#]*##  *\(.*\)/\1 \2/p' $(firstword $(MAKEFILE_LIST)) \
	    | while read -r name words; do printf '  make %-13s %s\n' "$$name" "$$words"; done

test-unit: $(VENV)/.installed-test  ## Run the unit tests; fail where they reach too few branches.
	$(PYTEST) tests/unit --cov --cov-report=term:skip-covered $(ARGS)

# Files that reach most of the code, with little that watches the clock or the signals, which measuring changes.
E2E := $(patsubst %,tests/e2e/test_%.py,single relay library comebacks named_gateways check http_listener lifetime \
    library_blocking watch)

coverage-e2e: $(VENV)/.installed-test  ## Run end-to-end tests; fail where they and their daemons reach too few branches.
	rm -f .coverage-e2e*
	$(BIN)/coverage run --rcfile=tests/e2e/coverage.toml -m $(RUN) -p no:cov $(E2E) $(ARGS)
	$(BIN)/coverage combine --rcfile=tests/e2e/coverage.toml --quiet
	$(BIN)/coverage report --rcfile=tests/e2e/coverage.toml --skip-covered

test-e2e: coverage-e2e  ## Run all end-to-end tests once, those of `coverage-e2e` measured.
	$(PYTEST) tests/e2e $(addprefix --ignore=,$(E2E)) $(ARGS)

test-long: $(VENV)/.installed-test  ## Kill each part at each step, twenty times at random instants: an hour.
	$(PYTEST) -m long $(ARGS)

test-all: $(VENV)/.installed-dev  ## Run lint, docs and tests under each Python from 3.11 to 3.13 that is installed.
	$(BIN)/nox $(ARGS)

model: $(VENV)/.installed-test  ## Explore all that may go wrong, within wide bounds: minutes, a JSON line at the end.
	@$(BIN)/python tests/model/run.py $(ARGS)

fuzz: $(VENV)/.installed-fuzz  ## Fuzz the codec, the parsers and the machines: ten minutes, or ARGS='--seconds 60'.
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

lint: $(VENV)/.installed-test  ## Check the format, the style and the types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## Build the pages into docs/_build/html; any warning fails.
	$(BIN)/sphinx-build -W --keep-going -n -q -b html docs docs/_build/html $(ARGS)

man: $(VENV)/.installed  ## Write a manual page for each command into docs/_build/man.
	@$(BIN)/python docs/man_pages.py docs/_build/man

changes: $(VENV)/.installed-dev  ## Show what is new since the last release.
	@$(BIN)/towncrier build --draft $(ARGS)

hooks: $(VENV)/.installed-dev $(VENV)/.installed-test  ## Check style, types and the subject at each commit.
	$(BIN)/pre-commit install

bench: $(VENV)/.installed-bench  ## Measure beside HAProxy, nginx, stunnel and socat: a quarter of an hour, or ARGS=--quick.
	@$(BIN)/python -m bench $(ARGS)

wheel: $(VENV)/.installed  ## Build the wheel into dist.
	rm -rf build/lib build/bdist.* dist/scistream-*.whl
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

# Both run packaging/install: PREFIX, DESTDIR, BINDIR and UNITDIR say where, and PYTHON which interpreter the daemons have.
install: wheel  ## Install into PREFIX (/opt/scistream), with units for systemd, as root.
	PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" PIP="$(BIN)/python -m pip" packaging/install dist/scistream-*.whl

deb: wheel  ## Build a Debian package for this release of Debian into build.
	@PIP="$(abspath $(BIN))/python -m pip" packaging/deb dist/scistream-*.whl build

clean:  ## Remove .venv and everything that was built.
	rm -rf $(VENV) .nox build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz .coverage*
	find scistream tests bench twisted docs -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

# Installed in place, in the versions that were tested. Without the compat mode twistd would not find twisted/plugins
# outside this folder.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    --config-settings editable_mode=compat --editable

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the tools of the tests ..."
	@$(INSTALL) '.[test,lint]'
	@touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-test

# The others are extras of setup.cfg: dev, fuzz, docs, bench.
$(VENV)/.installed-%: $(VENV)/.installed
	@echo "installing the tools for $* ..."
	@$(INSTALL) '.[$*]'
	@touch $@
