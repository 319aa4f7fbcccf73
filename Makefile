# Everything happens in .venv in this folder; needs only Python 3.11 and make.
#   make setup         install (make setup OPS=1 builds mmcv with its compiled operations, tens of minutes)
#   make ... BASE=onedl   the same on the maintained forks of mmdet, mmengine and mmcv, in .venv-onedl
#   make demo          import weights, fine-tune them on embedded data, held to a few old pictures, and judge what is kept
#   make test          the test suite
#   make fuzz MINUTES=10   checkpoints, guard.json and annotations of strangers, each so long
#   make soak          2,000 iterations of the small model: memory, open files, threads and the work folder must not grow
#   make chaos         trainings killed and broken in every way: KILLS=250 at random from SEED=0, and at every step
#   make mutation      mutants of maths, plan and keep: the share the tests find, of SAMPLE=600 drawn by SEED=0
#   make coverage      lines of the package that the whole suite runs, in all its processes
#   make bench         speed against named peers
#   make lint          ruff, mypy and import-linter through pre-commit
PYTHON ?= python3.11
BASE ?= mmdet
VENV := $(or $(and $(filter mmdet,$(BASE)),.venv),$(and $(filter onedl,$(BASE)),.venv-onedl),\
	$(error BASE must be mmdet or onedl, got '$(BASE)'))
BIN := $(VENV)/bin
MMCV := $(if $(filter onedl,$(BASE)),onedl-mmcv,mmcv)
PIP := $(BIN)/python -m pip install --quiet --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
# The demo: the weights of the old domain, whose config names their classes; the plan on the new domain; the run. Shorter
# and with fewer old pictures than the config has, for two cores and five minutes in all.
DEMO_KERAS := weights/digits_source.h5
DEMO_START := weights/digits_source.pth
DEMO_OLD := configs/mgdet_nano_source.py
DEMO_CONFIG := configs/mgdet_nano_keep.py
DEMO_SHORT := stages.0.epochs=8 stages.0.warmup_epochs=1 stages.0.lr=3e-3 stages.0.mosaic_prob=0.0 \
	stages.0.mixup_prob=0.0 keep.images_used=20 keep.share=0.334 train_cfg.val_interval=4 \
	default_hooks.checkpoint.interval=4 default_hooks.channels_last.type=ChannelsLastHook
DEMO_DIR := work_dirs/demo
DEMO_BEST := $(DEMO_DIR)/best.pth
heading = @echo; echo '=== $(1)'
OPS ?= 0

# Modules are compiled when first imported and kept: faster than compiling all of torch at install.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test fuzz soak chaos mutation coverage bench lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.dev $(if $(filter 1,$(OPS)),$(VENV)/.ops)

# The build tools come first: mgdet and mmcv are built with the pinned setuptools, and torch must not be replaced. Without
# torch in sight, as pip builds it, onedl-mmcv has no compiled operations.
$(VENV)/.runtime: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel
	$(if $(filter onedl,$(BASE)),$(PIP) onedl-mmcv,$(BIN)/python -m pip show --quiet mmcv 2>/dev/null \
		$(if $(filter 1,$(OPS)),|| true,|| $(PIP) mmcv-lite))
	$(PIP) --no-build-isolation --editable '.[$(BASE),demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --no-build-isolation --editable '.[$(BASE),demo,deploy,dev,keras]'
	touch $@

$(VENV)/.ops: $(VENV)/.runtime
	$(BIN)/python -m pip uninstall --quiet --yes mmcv-lite onedl-mmcv
	MMCV_WITH_OPS=1 $(PIP) --no-build-isolation --no-cache-dir --no-binary $(MMCV) $(MMCV)
	touch $@

# One thread: with the loader beside it two cores are full, and threads that wait for one another cost more than they do.
demo: export OMP_NUM_THREADS := 1
demo: $(VENV)/.runtime
	$(call heading,1 of 6: import Keras weights that know the old domain)
	@$(BIN)/python tools/import_keras.py $(DEMO_KERAS) $(DEMO_START) --config $(DEMO_CONFIG) --classes $(DEMO_CONFIG) \
		--source-classes $(DEMO_OLD)
	$(call heading,2 of 6: the plan of the run)
	@$(BIN)/python tools/plan.py $(DEMO_CONFIG) --cfg-options $(DEMO_SHORT)
	$(call heading,3 of 6: learn the new domain and keep the old one from a few of its pictures without labels)
	@$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO_DIR) --quiet --cfg-options $(DEMO_SHORT)
	$(call heading,4 of 6: both domains before and after)
	@$(BIN)/python tools/compare.py $(DEMO_CONFIG) $(DEMO_START) $(DEMO_BEST) --old $(DEMO_OLD)
	$(call heading,5 of 6: what it learnt and what it kept)
	@$(BIN)/python tools/check_run.py $(DEMO_DIR)
	$(call heading,6 of 6: a page about the run and what the model finds)
	@$(BIN)/python tools/plot_run.py $(DEMO_DIR)
	@$(BIN)/python tools/draw.py $(DEMO_CONFIG) $(DEMO_BEST) $(DEMO_DIR)/detections.png --score-thr 0.5

# Each worker takes a half in order, so that what a module shares is made once, and helps the other at the end.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

MINUTES ?= 10
fuzz: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.support.fuzz.run all --minutes $(MINUTES)

soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.soak

# With SHARE=i/n only every nth kill from the ith on.
KILLS ?= 250
SEED ?= 0
SHARE ?= 0/1
chaos: $(VENV)/.dev
	OMP_NUM_THREADS=1 CHAOS_KILLS=$(KILLS) CHAOS_SEED=$(SEED) CHAOS_SHARE=$(SHARE) $(BIN)/python -m pytest -s tests/chaos

# Their tools are needed here alone.
SAMPLE ?= 600
mutation: $(VENV)/.dev
	$(PIP) mutmut
	OMP_NUM_THREADS=1 nice $(BIN)/python -W ignore -m tests.support.mutation --sample $(SAMPLE) --seed $(SEED)

# Tests become other users, who write what they ran, too.
coverage: export COVERAGE_FILE := $(CURDIR)/.coverage/lines
coverage: $(VENV)/.dev
	$(PIP) coverage
	rm -rf .coverage
	mkdir -m 1777 .coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 2 --dist worksteal
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=95

bench: $(VENV)/.dev
	$(BIN)/python tools/benchmark.py

lint: $(VENV)/.dev
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

clean:
	rm -rf $(VENV) build mutants .coverage* *.egg-info .mypy_cache .ruff_cache .pytest_cache
