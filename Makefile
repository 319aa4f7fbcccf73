# Everything happens in .venv in this folder; needs only Python 3.11 and make.
#   make setup         install (make setup OPS=1 builds mmcv with its compiled operations, tens of minutes)
#   make demo          train on the embedded data, evaluate and draw detections
#   make test          the test suite
#   make bench         speed against named peers
#   make lint          ruff and mypy through pre-commit
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
DEMO_CONFIG := configs/mgdet_nano_source.py
DEMO_DIR := work_dirs/mgdet_nano_source
OPS ?= 0

# Modules are compiled when first imported and kept: faster than compiling all of torch at install.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test bench lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.dev $(if $(filter 1,$(OPS)),$(VENV)/.ops)

# The build tools come first: mgdet and mmcv are built with the pinned setuptools, and torch must not be replaced.
$(VENV)/.runtime: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel
	$(BIN)/python -m pip show --quiet mmcv 2>/dev/null $(if $(filter 1,$(OPS)),|| true,|| $(PIP) mmcv-lite)
	$(PIP) --no-build-isolation --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --no-build-isolation --editable '.[demo,dev,keras]'
	touch $@

$(VENV)/.ops: $(VENV)/.runtime
	$(BIN)/python -m pip uninstall --quiet --yes mmcv-lite
	MMCV_WITH_OPS=1 $(PIP) --no-build-isolation --no-binary mmcv mmcv
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR)
	$(BIN)/python tools/test.py $(DEMO_CONFIG) $(DEMO_DIR)/best.pth --work-dir $(DEMO_DIR)/test
	$(BIN)/python tools/draw.py $(DEMO_CONFIG) $(DEMO_DIR)/best.pth $(DEMO_DIR)/detections.png --score-thr 0.2

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench: $(VENV)/.dev
	$(BIN)/python tools/benchmark.py

lint: $(VENV)/.dev
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
