# Every target sets up .venv from requirements.txt when it is missing or older than that file.
PYTHON ?= python3
TOOLS = pytest pytest-xdist ruff mypy

.PHONY: demo corridor-demo bench bench-gpu test lint clean

demo: .venv/installed
	.venv/bin/python -m examples.demo

# Trains longer on a synthetic city and evaluates on real images: make corridor-demo DATASETS_FOLDER=/data/vpr
corridor-demo: .venv/installed
	.venv/bin/python -m examples.demo --real_photos "$(DATASETS_FOLDER)" corridor

# Tables on the terminal, and as JSON in benchmarks/results
bench: export CUDA_VISIBLE_DEVICES =
bench: .venv/installed
	mkdir -p benchmarks/results
	for name in input extract train retrieval; do \
		.venv/bin/python -m benchmarks.bench_$$name --json benchmarks/results/$$name.json || exit; \
	done

# The full-size tables of a machine with a CUDA GPU
bench-gpu: .venv/installed
	mkdir -p benchmarks/results
	for name in input extract train; do \
		.venv/bin/python -m benchmarks.bench_$$name --gpu --json benchmarks/results/$${name}_gpu.json || exit; \
	done
	.venv/bin/python -m benchmarks.bench_retrieval --large --json benchmarks/results/retrieval_large.json

test: .venv/installed
	.venv/bin/python -m pytest -q -n auto --dist loadfile

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; this is " + sys.version'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements.txt $(TOOLS)
	touch $@

clean:
	rm -rf .venv logs demo demo_real
