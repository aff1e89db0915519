# `make demo` runs two whole facilities and a stream between them; `make test` runs the tests.
# Both make a virtual environment of their own in .venv first. ARGS is handed on:
#   make demo ARGS='--json'        make test ARGS='-k single'

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo test test-long model fuzz lint bench clean

demo: $(VENV)/.installed
	@$(BIN)/scistream demo $(ARGS)

# The tests wait more than they work, so several files run at once.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile

test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

# Each part killed at each step, twenty times at random instants: about an hour.
test-long: $(VENV)/.installed-test
	$(PYTEST) -m long $(ARGS)

# The model checker within its wide bounds: minutes. A JSON line at the end.
model: $(VENV)/.installed-test
	@$(BIN)/python tests/model/run.py $(ARGS)

# A fuzzer on the codec, the parsers, and every machine behind it: ten minutes, or ARGS='--seconds 60'.
fuzz: $(VENV)/.installed-fuzz
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# This project beside HAProxy, nginx, stunnel and socat: a quarter of an hour, ARGS=--quick under five, ARGS=--help for more.
bench: $(VENV)/.installed-bench
	@$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz
	find scistream tests bench twisted -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache

# Installed in place. Without the compat mode twistd would not find twisted/plugins outside this folder.
INSTALL := install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable

$(VENV)/.installed: setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip $(INSTALL) .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the tools of the tests ..."
	@$(BIN)/python -m pip $(INSTALL) '.[test,lint]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "installing what draws the plot of the benchmark ..."
	@$(BIN)/python -m pip $(INSTALL) '.[bench]'
	@touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-test
	@echo "installing the fuzzer ..."
	@$(BIN)/python -m pip $(INSTALL) '.[fuzz]'
	@touch $@
