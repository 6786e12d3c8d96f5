# Everything that one does with this tree.  Each target brings what it needs by itself: Debian packages where they are
# missing, and a virtual environment in .venv with the package built from the tree, rebuilt when its sources change.

PYTHON ?= python3
VENV := .venv
PEERS := build/peers
FRONTEND := build/frontend
GRADIO := build/gradio
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
	@echo 'make test-web  only the browser side, in the hosts'"'"' own frontends; screenshots in build/screenshots'
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
	@export HM_BUILD_WERROR=1; $(INSTALL)
	@touch $(VENV)/.package $@

$(VENV)/.demo: $(VENV)/.made Makefile
	@echo "installing NumPy, Pillow and matplotlib for the demo"
	@$(PIP) numpy pillow 'matplotlib>=3.6'
	@touch $@

$(VENV)/.tests: $(VENV)/.made tests/requirements.txt tests/frontend/requirements.txt
	@echo "installing what the tests need (torch among it: the first time takes some minutes)"
	@$(PIP) -r tests/requirements.txt -r tests/frontend/requirements.txt
	@touch $@

# Without clang, or without its libFuzzer, the C core is tested all the same; what is left out is named.
build/.fuzzer: | build/.system
	@if sh tools/setup-debian.sh $(PYTHON) fuzzer; then touch $@; else echo "no clang with libFuzzer: no fuzzing"; fi

# Without a browser, or without ComfyUI's frontend, the tests that need them are skipped and say so.
build/.browser: | build/.system
	@if sh tools/setup-debian.sh $(PYTHON) browser; then touch $@; else echo "no Chromium: no browser tests"; fi

$(FRONTEND)/.made: $(VENV)/.made
	@echo "fetching ComfyUI's frontend for the browser tests: 1.45.21 and the newest"
	@rm -rf $(FRONTEND) && mkdir -p $(FRONTEND)
	@if $(PIP) --no-deps --target $(FRONTEND)/1.45.21 comfyui-frontend-package==1.45.21 && \
	    $(PIP) --no-deps --target $(FRONTEND)/newest comfyui-frontend-package; then touch $@; \
	    else echo "no comfyui-frontend-package: no tests in ComfyUI's frontend"; fi

# Automatic1111 and Forge pin a Gradio each, neither of which runs on a Python newer than 3.12.
GRADIO_PINS := $(wildcard tests/webui/page/gradio-*.txt)
$(GRADIO)/.made: $(VENV)/.made $(GRADIO_PINS)
	@echo "installing Gradio as Automatic1111 and Forge pin it, for the tests of their pages"
	@rm -rf $(GRADIO) && mkdir -p $(GRADIO)
	@if $(IN_VENV) -c 'import sys; sys.exit(sys.version_info > (3, 13))'; then \
	    for pins in $(GRADIO_PINS); do version=$${pins##*/gradio-}; to=$(GRADIO)/$${version%.txt}; \
	    { $(PYTHON) -m venv $$to && $$to/bin/python -m pip --quiet --disable-pip-version-check install -r $$pins; } || \
	    { rm -rf $$to; echo "no Gradio $${version%.txt}: no tests of its pages"; }; done; \
	    else echo "these versions of Gradio want Python 3.12 or older: no tests of their pages"; fi
	@touch $@

# The neighbour that the benchmark compares with has wishes of its own about versions.
$(PEERS)/.made: $(VENV)/.made
	@echo "installing sd-mecha and mergekit for the benchmark"
	@$(PYTHON) -m venv --clear $(PEERS)
	@for peer in sd-mecha mergekit; do \
	    $(PEERS)/bin/python -m pip --quiet --disable-pip-version-check install -c tests/requirements.txt $$peer || \
	    echo "$$peer could not be installed; the benchmark goes without it"; done
	@touch $@

# ---- what one wants -------------------------------------------------------------------------------------------------

install: $(VENV)/.package

demo: $(VENV)/.package $(VENV)/.demo
	@$(IN_VENV) demo/run.py

test: test-c test-py

# One after the other, each in parallel; the fuzz targets for FUZZ_SECONDS (15) each.
C_CORE = $(MAKE) --no-print-directory -C csrc $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))

test-c: build/.system build/.fuzzer lint
	@$(C_CORE) test
	@$(C_CORE) tsan
	@$(C_CORE) fuzz-run

lint: build/.system
	@$(MAKE) --no-print-directory -C csrc lint

# From within tests/ and by pytest's own script: with `python -m`, or in this folder, tests and the processes that they
# start would find the sources of the package before the installed package.
PYTEST = cd tests && ../$(IN_VENV) ../$(VENV)/bin/pytest --import-mode=importlib --strict-markers -ra $(PYTEST_ARGS)

test-py: $(VENV)/.package-strict $(VENV)/.tests build/.browser $(FRONTEND)/.made $(GRADIO)/.made
	@$(PYTEST) .

test-web: $(VENV)/.package-strict $(VENV)/.tests build/.browser $(FRONTEND)/.made $(GRADIO)/.made
	@$(PYTEST) frontend webui/page

bench: $(VENV)/.package $(VENV)/.tests $(PEERS)/.made
	@$(IN_VENV) bench/run.py --folder $(BENCH_DIR) --peers $(PEERS)/bin/python $(if $(QUICK),--quick) $(if $(SDXL),--sdxl)

clean:
	rm -rf build/lib* build/temp* build/bdist* build/csrc build/.system build/.browser build/.fuzzer build/screenshots *.egg-info .pytest_cache .hypothesis demo/out
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf build $(VENV)

.PHONY: help install demo test test-c test-py test-web lint bench clean distclean
