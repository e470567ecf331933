# Everything from nothing: `make demo` and `make test` make .venv, install, and run.
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: demo test check docs newcomer originals install browser clean

demo: install
	$(BIN)/circuits demo

# What CI runs: format, lint, types, tests (docstrings' examples and notebooks included).
test: install check browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --nbmake notebooks/*.ipynb

# A browser for the tests of the page; without one they are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get install -y -qq --no-install-recommends chromium chromium-driver || \
	    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }; } >/dev/null 2>&1; } || \
	echo "tests of the page in a browser are skipped: chromium and chromedriver are not there and could not be installed (Debian: apt-get install chromium chromium-driver, as root)"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The site, into site/, in an environment of its own (it reads the code and runs none of it); any
# warning is an error.
docs:
	test -d .venv-docs || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

# A copy in an empty folder, installed from nothing: README and first tutorial as typed, notebooks.
newcomer: install
	LINEAR_CIRCUITS_FRESH=1 PIP_FLAGS='$(PIP_FLAGS)' $(BIN)/python -m pytest -q tests/test_readme.py

# The packages whose layers we read, in an environment of their own, on the same small files.
originals: install
	test -d .venv-originals || $(PYTHON) -m venv .venv-originals
	.venv-originals/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r tests/originals/requirements.txt
	LINEAR_CIRCUITS_ORIGINALS=$(CURDIR)/.venv-originals/bin/python OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/originals

install: $(INSTALLED)

# torch first and alone, at the pinned version. Where the package index serves a build with CUDA
# for it (gigabytes), PIP_FLAGS can name another: make demo PIP_FLAGS='...'
$(INSTALLED): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	rm -f .venv/installed-*
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-originals demo site
