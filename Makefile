# SPDX-License-Identifier: Apache-2.0
#
# The commands of the house. Each makes what it needs first: an environment in .venv (CMake, Ninja,
# torch and the rest come from PyPI), the library, the package. A second run does only what changed.
# Needs git, make, Python >= 3.10 and a C++20 compiler; nothing outside this folder is touched.

PYTHON ?= python3
PRESET ?= release
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# torch as pip shall find it; on a machine without a GPU
#   make demo HCCOMM_PY_TORCH_SPEC="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
# spares the download of the CUDA libraries. A torch that is already in .venv is kept.
HCCOMM_PY_TORCH_SPEC ?= torch==2.13.0
PYTEST_ARGS ?=
CTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?= --ranks 4 --hosts 2 --max 16M
CHECK_ARGS ?=

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
REQUIRES := tools/requirements
# cmake, ctest and ninja of .venv first, whatever the machine has.
export PATH := $(BIN):$(PATH)

SOURCES := $(shell find csrc bindings hccomm -type f -not -name '*.pyc' -not -name '*.so')

.DEFAULT_GOAL := help
.PHONY: help demo test bench check format fuzz install cpp gtest clean distclean

help:
	@echo "make demo     train a classifier on two simulated vendors and the CPU, on two hosts"
	@echo "make test     build, then every test: ctest and pytest   (PYTEST_ARGS= CTEST_ARGS= PRESET=)"
	@echo "make bench    beside MPI, Gloo and oneCCL; bench/results  (BENCH_ARGS=--ranks 2,4)"
	@echo "make check    format, lint, types, layers, headers        (CHECK_ARGS=--fix)"
	@echo "make install  the package into $(VENV), with the torch glue prebuilt"
	@echo "make clean    remove what was built; make distclean also $(VENV)"

demo: $(VENV)/.hccomm $(VENV)/.demo
	$(BIN)/python demo/run.py $(DEMO_ARGS)

# Both suites run, whatever the first one says; the exit status is of both.
test: $(VENV)/.hccomm $(VENV)/.test cpp
	@status=0; \
	$(BIN)/ctest --preset $(PRESET) -j 2 --no-tests=error $(CTEST_ARGS) || status=1; \
	$(BIN)/pytest $(PYTEST_ARGS) || status=1; \
	exit $$status

bench: $(VENV)/.hccomm $(VENV)/.demo
	$(BIN)/cmake --preset release
	$(BIN)/cmake --build build/release -j $(JOBS) --target collectives
	$(BIN)/python bench/mpis.py install
	$(BIN)/python bench/run.py $(BENCH_ARGS)

check: $(VENV)/.check $(VENV)/.build $(VENV)/.torch
	$(BIN)/python tools/check.py $(CHECK_ARGS)

install: $(VENV)/.hccomm

cpp: $(VENV)/.build gtest
	$(BIN)/cmake --preset $(PRESET)
	$(BIN)/cmake --build build/$(PRESET) -j $(JOBS)

# GoogleTest of the system; installed where we may; else CMake fetches its pinned release.
gtest:
	@if ! echo '#include <gtest/gtest.h>' | $${CXX:-c++} -x c++ -E - >/dev/null 2>&1 \
	    && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get install -y -q libgtest-dev >/dev/null 2>&1 \
	    || { apt-get update -q >/dev/null 2>&1 && apt-get install -y -q libgtest-dev >/dev/null; } \
	    || echo "GoogleTest is not installed; CMake will try to fetch it"; \
	fi

# ---- the environment: one stamp per step, older than what the step depends on when it must rerun

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "hccomm needs Python >= 3.10; $(PYTHON) is not: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) cannot make an environment; on Debian: apt install python3-venv"; exit 1; }
	$(PIP) install -q --upgrade pip
	@touch $@

$(VENV)/.build: $(REQUIRES)/build.txt pyproject.toml | $(VENV)/.made
	$(PIP) install -q -r $<
	@touch $@

$(VENV)/.torch: | $(VENV)/.made
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' \
	  || { set -x; $(PIP) install -q $(HCCOMM_PY_TORCH_SPEC); }
	@touch $@

$(VENV)/.test $(VENV)/.check $(VENV)/.demo: $(VENV)/.%: $(REQUIRES)/%.txt | $(VENV)/.made
	$(PIP) install -q -r $<
	@touch $@

# The wheel's build folder (pyproject.toml: build-dir) stays: a re-install compiles what changed.
$(VENV)/.hccomm: $(SOURCES) CMakeLists.txt pyproject.toml | $(VENV)/.build $(VENV)/.torch
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(PIP) install -q --no-build-isolation '.[test,bench]'
	@touch $@

clean:
	rm -rf build demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f $(VENV)/.hccomm

distclean: clean
	rm -rf $(VENV)
