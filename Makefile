# Everything that one does with this tree.  Each target brings what it needs by itself: Debian packages where they are
# missing, and a virtual environment in .venv with the package built from the tree, rebuilt when its sources change.

PYTHON ?= python3
VENV := .venv
PEERS := build/peers
BENCH_DIR ?= build/bench
JOBS ?= $(shell nproc 2>/dev/null || echo 1)

# Interpreters are named in full, so that the environment still works after the folder was moved.
IN_VENV := $(VENV)/bin/python
PIP := $(IN_VENV) -m pip --quiet --disable-pip-version-check install

# Folders too: their times tell of files that were removed.
SOURCES := setup.py pyproject.toml $(shell find csrc hypermerge_ext \
    \( -path csrc/tests -o -path csrc/fuzz -o -path csrc/bench -o -name __pycache__ \) -prune -o \
    \( -type d -o -name '*.[ch]' -o -name '*.py' -o -name '*.pyi' \) -print)

help:
	@echo 'make demo      merge the eight small models of demo/ and look at what the directions do (demo/out)'
	@echo 'make test      all tests, as CI runs them: the C core under sanitizers, then pytest'
	@echo 'make test-c    only the C core    make test-py   only pytest    make lint   only clang'"'"'s warnings'
	@echo 'make bench     ratios against the disk and other tools; 40 GB in BENCH_DIR (build/bench); QUICK=1 for 3 GB'
	@echo 'make install   the package in .venv, and no more: .venv/bin/hyper-merge'
	@echo 'make clean     remove what was built    make distclean   .venv and the benchmark files too'
	@echo 'PYTHON=python3.12 and CC=gcc-13 choose other tools.'

# The steps here run one after the other, so that their output can be read; C files are compiled in parallel.
.NOTPARALLEL:

# ---- what has to be there -------------------------------------------------------------------------------------------

build/.system:
	@sh tools/setup-debian.sh $(PYTHON)
	@mkdir -p build && touch $@

$(VENV)/.made: | build/.system
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) 'setuptools>=77'
	@touch $@

# setuptools keeps files of earlier builds in build/, also those which the tree has no longer.
INSTALL = rm -rf build/lib* build/temp* build/bdist* && $(PIP) --no-build-isolation .

$(VENV)/.package: $(VENV)/.made $(SOURCES)
	@echo "building the package"
	@$(INSTALL)
	@touch $@

# For the tests every warning is an error; for users a newer compiler's opinion must not be.
$(VENV)/.package-strict: $(VENV)/.made $(SOURCES)
	@echo "building the package, every warning an error"
	@HM_BUILD_WERROR=1 $(INSTALL)
	@touch $(VENV)/.package $@

$(VENV)/.demo: $(VENV)/.made
	@echo "installing NumPy and Pillow for the demo"
	@$(PIP) numpy pillow
	@touch $@

$(VENV)/.tests: $(VENV)/.made tests/requirements.txt
	@echo "installing what the tests need (torch among it: the first time takes some minutes)"
	@$(PIP) -r tests/requirements.txt
	@touch $@

# The neighbour that the benchmark compares with has wishes of its own about versions.
$(PEERS)/.made: $(VENV)/.made
	@echo "installing sd-mecha for the benchmark"
	@$(PYTHON) -m venv --clear $(PEERS)
	@$(PEERS)/bin/python -m pip --quiet --disable-pip-version-check install -c tests/requirements.txt sd-mecha || \
	    echo "sd-mecha could not be installed; the benchmark goes without it"
	@touch $@

# ---- what one wants -------------------------------------------------------------------------------------------------

install: $(VENV)/.package

demo: $(VENV)/.package $(VENV)/.demo
	@$(IN_VENV) demo/run.py

test: test-c test-py

test-c: build/.system lint
	@$(MAKE) --no-print-directory -C csrc $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS)) test

lint: build/.system
	@$(MAKE) --no-print-directory -C csrc lint

# From within tests/ and by pytest's own script: with `python -m`, or in this folder, tests and the processes that they
# start would find the sources of the package before the installed package.
test-py: $(VENV)/.package-strict $(VENV)/.tests
	@cd tests && ../$(IN_VENV) ../$(VENV)/bin/pytest --import-mode=importlib --strict-markers -ra $(PYTEST_ARGS) .

bench: $(VENV)/.package $(VENV)/.tests $(PEERS)/.made
	@$(IN_VENV) bench/run.py --folder $(BENCH_DIR) --peers $(PEERS)/bin/python $(if $(QUICK),--quick)

clean:
	rm -rf build/lib* build/temp* build/bdist* build/csrc build/.system *.egg-info .pytest_cache .hypothesis demo/out
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf build $(VENV)

.PHONY: help install demo test test-c test-py lint bench clean distclean
