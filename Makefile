# `make help` lists the targets. They install into .venv whatever is missing.
PYTHON ?= python3
CONSTRAINTS ?=
OPTIONAL = $(wildcard requirements-*.txt)
TOOLS = pytest pytest-xdist hypothesis geographiclib ruff mypy
MILVUS_SERVER = milvus==2.3.5
BIN = $(if $(filter Windows_NT,$(OS)),Scripts,bin)
VENV_PYTHON = .venv/$(BIN)/python
PYTEST = -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help install try demo serve-demo corridor-demo reproduce real bench bench-gpu bench-gpu-short test test-all test-unit test-oldest test-faults lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s %s\n", $$1, $$2}' Makefile

install: .venv/installed  ## install everything into .venv; the other targets do so too

try: .venv/installed  ## search and evaluate with a small model and drawn photos, in half a minute: nothing is downloaded
	$(VENV_PYTHON) -m examples.try_it

demo: .venv/installed  ## draw a city, train on it, evaluate
	$(VENV_PYTHON) -m examples.demo

serve-demo: .venv/installed  ## find photos of the demo's city in a page, after `make demo`
	$(VENV_PYTHON) -m examples.serve_demo

corridor-demo: .venv/installed  ## train on synthetic corridors, evaluate on real images: make corridor-demo DATASETS_FOLDER=/data/vpr
	$(VENV_PYTHON) -m examples.demo --real_photos "$(DATASETS_FOLDER)" corridor --indoors

reproduce: .venv/installed  ## compare the published models with published recalls: make reproduce DATASETS_FOLDER=/data/vpr
	$(VENV_PYTHON) -m benchmarks.reproduce $(if $(DATASETS_FOLDER),--datasets_folder "$(DATASETS_FOLDER)") $(if $(MSLS_QUERIES_LIST),--msls_queries_list "$(MSLS_QUERIES_LIST)")

test: .venv/installed  ## run the tests: seven minutes on two CPU cores
	$(VENV_PYTHON) $(PYTEST) -m "not proof"

test-all: test  ## run the tests and the slower proofs
	$(VENV_PYTHON) $(PYTEST) -m proof

test-unit: .venv/installed  ## run the quick tests, which start no scripts
	$(VENV_PYTHON) $(PYTEST) -m "not slow and not proof and not distributed and not gpu"

test-oldest: .venv-oldest/installed  ## run the tests with the versions of constraints/oldest.txt (Python 3.10 or 3.11)
	.venv-oldest/$(BIN)/python $(PYTEST) -m "not proof"

test-faults: export SEED := $(or $(SEED),$(shell date +%s))
test-faults: .venv/installed  ## break the scripts at random, a table follows: SEED=N repeats a run, TRIALS=N of each fault
	@echo "SEED=$(SEED)"
	$(VENV_PYTHON) -m pytest -q -n auto --dist worksteal --show-capture=no --faults $(FAULTS)

lint: .venv/installed  ## check style (ruff) and types (mypy)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

real: .venv/installed  ## find small sets of real images with the demos' models: make real DATASETS_FOLDER=/data/vpr [MODELS=name_or_file]
	$(VENV_PYTHON) -m benchmarks.real $(if $(DATASETS_FOLDER),--datasets_folder "$(DATASETS_FOLDER)") $(if $(MODELS),--models $(MODELS))

bench: export CUDA_VISIBLE_DEVICES =
bench: .venv/installed  ## run the benchmarks on the CPU: tables on the terminal, JSON and benchmarks/README.md
	for name in input loader decoders extract parts train retrieval approximate recognizer onnx; do \
		$(VENV_PYTHON) -m benchmarks.bench_$$name --json || exit; \
	done
	$(VENV_PYTHON) -m benchmarks.readme

bench-gpu: .venv/installed  ## run the full-size benchmarks on a machine with a CUDA GPU
	for name in input extract train; do \
		$(VENV_PYTHON) -m benchmarks.bench_$$name --gpu --json || exit; \
	done
	CUDA_VISIBLE_DEVICES= $(VENV_PYTHON) -m benchmarks.bench_retrieval --large --json
	$(VENV_PYTHON) -m benchmarks.readme

bench-gpu-short: .venv/installed  ## measure what matters on a CUDA GPU within eight minutes; after a stop, it goes on
	$(VENV_PYTHON) -m benchmarks.bench_gpu

clean:  ## remove the environments, logs, and what try and demo made
	rm -rf .venv .venv-oldest logs try demo demo_real demo_indoors

.venv/installed: requirements.txt $(OPTIONAL) Makefile
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed; this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(VENV_PYTHON) -m pip install --quiet $(addprefix --requirement=,requirements.txt $(OPTIONAL)) $(addprefix --constraint=,$(CONSTRAINTS)) $(TOOLS)
	$(VENV_PYTHON) -m pip install --quiet --no-deps $(MILVUS_SERVER) || echo "No Milvus server for this system: its tests will be skipped."
	touch $@

# Without HEIC: its decoder crashes on damaged files where Pillow is old.
.venv-oldest/installed: OPTIONAL := $(filter-out requirements-heic.txt,$(OPTIONAL))
.venv-oldest/installed: requirements.txt constraints/oldest.txt $(OPTIONAL) Makefile
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/$(BIN)/python -m pip install --quiet $(addprefix --requirement=,requirements.txt $(OPTIONAL)) --constraint constraints/oldest.txt $(TOOLS)
	touch $@
