# make demo     two real searches, MedianPruner and freeze_thaw, side by side (a few minutes)
# make test     the tests, with one torch thread and (those that measure) with two
# make test-threads     the latter alone
# make test-libraries   the tests of other libraries, in .venv-libraries
# make study-libraries     searches of 25 trials in each of them; writes docs/libraries.md (10 minutes)
# make benchmark   what readouts and spectra cost here, against Algorithm 1 and training (10 minutes)
# make soak     20 minutes of workers on three storages while things break: is anything lost?
# make browser  Chromium from the system's packages, for the tests in a browser
# make pictures   every picture of README and docs, anew, and what README says of the demo
# make docs     the documentation, in docs/_build/html
# make check    linter, formatter and type checker over everything
#
# The first of them creates .venv and installs torch, then this package with its test tools.
#   make demo TORCH=torch            another torch (any requirement pip understands)
#   make demo SYSTEM_SITE_PACKAGES=1 TORCH=    the torch that PYTHON already has
#   make demo DEMO='--budget 100'    other options of the demo
#   make study-libraries STUDY='--library darts'    one of them
#   make soak MINUTES=2 SEED=7       a shorter soak, with other faults

PYTHON ?= python3
VENV ?= .venv
LIBRARIES ?= .venv-libraries
TORCH ?= torch==2.13.0
SYSTEM_SITE_PACKAGES ?=
DEMO ?=
BENCHMARK ?=
PICTURES ?=
MINUTES ?= 20
SEED ?= 0
PYTEST ?=
STUDY ?=

BIN := $(VENV)/bin
MEASURING := $(addprefix tests/test_,$(addsuffix .py,spectrum start driven_layers \
	whose_network any_model battery architectures dynamics))
STAMP := $(VENV)/.installed

# One thread per process: the tests run in two processes, the demo in one.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

.PHONY: help install demo test test-fast test-threads test-libraries study-libraries browser benchmark soak pictures docs check format clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(if $(SYSTEM_SITE_PACKAGES),--system-site-packages) $(VENV)
	@echo 'Installing $(strip $(TORCH)) and the package; this takes a while the first time.'
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(if $(strip $(TORCH)),$(BIN)/python -m pip install --quiet '$(strip $(TORCH))')
	$(BIN)/python -m pip install --quiet --editable '.[test,docs]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/lyap-optuna demo $(DEMO)

# One thread in each of two processes; then what measures, with two threads in one process.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 $(PYTEST)
	$(MAKE) test-threads

test-threads: $(STAMP)
	OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 \
		$(BIN)/python -m pytest -q -k "not (storage or evidence or figure)" $(MEASURING)

test-fast: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m "not slow" $(PYTEST)

# In an environment of their own, torch first: nothing that they need replaces it. A package that
# is missing is an error there; `make test` skips what it does not have.
test-libraries: $(LIBRARIES)/.installed
	LYAP_REQUIRE_LIBRARIES=1 $(LIBRARIES)/bin/python -m pytest -n 2 tests/libraries $(PYTEST)

# One process and one thread, so that costs can be compared.
study-libraries: $(LIBRARIES)/.installed
	$(LIBRARIES)/bin/python -m studies.libraries --write docs/libraries.md $(STUDY)

$(LIBRARIES)/.installed: $(wildcard tests/libraries/requirements*.txt) pyproject.toml
	$(PYTHON) -m venv $(LIBRARIES)
	$(LIBRARIES)/bin/python -m pip install --quiet --upgrade pip
	$(LIBRARIES)/bin/python -m pip install --quiet '$(strip $(TORCH))'
	$(LIBRARIES)/bin/python -m pip install --quiet --editable . \
		--requirement tests/libraries/requirements.txt
	$(LIBRARIES)/bin/python -m pip install --quiet --no-deps \
		--requirement tests/libraries/requirements_alone.txt
	@touch $@

# Where there is none and the system's package manager may be used.
browser:
	@command -v chromium > /dev/null || { apt-get update -q && apt-get install -q -y chromium; }

# All cores, one process: this is what it is about.
benchmark: $(STAMP)
	@env -u OMP_NUM_THREADS -u MKL_NUM_THREADS $(BIN)/python -m studies.speed $(BENCHMARK)

# One demo, and all pictures of it. PICTURES=--reuse draws again without running it.
pictures: $(STAMP) browser
	@$(BIN)/python -m studies.pictures $(PICTURES)

# PostgreSQL and MariaDB are started for it, where they are installed; a journal needs nothing.
soak: $(STAMP)
	@$(BIN)/python -m studies.soak --minutes $(MINUTES) --seed $(SEED)

# Warnings are errors; notebooks and code cells run.
docs: $(STAMP)
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist docs/_build docs/api/generated docs/gallery .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(LIBRARIES)/*' -prune -exec rm -rf {} +
