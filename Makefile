# make setup   a virtual environment with everything in it (.venv, or what VENV= names)
# make demo    four benchmarks, plain network beside SE twin, on synthetic data: demo/report/report.html
# make test    the tests; TESTS= names some of them
# make lint    style, spelling and types
# make engines studies on real clusters and in several processes that are started here: Ray, of two nodes
# make fuzz    20,000 broken files of every kind: refused by a clear word, or read rightly
# make smoke   every table of the paper with its real networks, on synthetic images and for a few steps
# make endurance  trainings killed at random moments, and gone on with to the bytes of a whole one
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test engines fuzz smoke endurance lint

setup: $(READY)

$(READY): pyproject.toml constraints.txt tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sebench needs Python 3.10 or later, $(PYTHON) is %d.%d: name another with PYTHON=" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m tools.install_detectron2
	$(BIN)/python -m pip check
	@touch $@

demo: $(READY)
	$(BIN)/sebench demo --output demo

# Each of the two test processes keeps to one thread, or they would fight over the cores.
test: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TESTS)

engines: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m engines $(TESTS)

# After an interruption: make fuzz FUZZ="--start N", which it prints.
fuzz: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --files 20000 --jobs 2 $(FUZZ)

smoke: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/sebench reproduce all --scale smoke --jobs 2 --output smoke

endurance: $(READY)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.endurance --trials 60

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
