# make demo   builds the shipped checkpoint twice and makes one prompt dense and accelerated (out/)
# make test   lint, types and the whole test suite
# make test-minimum   a few tests with the oldest versions of everything that is declared to work
# make test-native   the native runtime under sanitizers, its fuzzing, and pictures by AOTInductor
# make campaigns   all of the attacks that make test has a sample of
# make test-gpu   the tests that need a GPU, with whatever torch .venv has; GPU_WORKERS at a time
# All set up .venv first; PYTHON=python3.12 make venv chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

WORKERS ?= 2
GPU_WORKERS ?= 6
PROMPT ?= an intricate red star on the left, plain blue background

.PHONY: demo test test-thorough test-minimum test-native campaigns test-gpu lint venv clean

venv: $(READY)

# Installed again only when the packaging changes; the sources are used in place.
$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cpu,rtx,dev]"
	touch $(READY)

demo: venv
	$(BIN)/accelaes-export build --model shapes --backend onnxruntime -o engines/built/shapes
	$(BIN)/accelaes-export build --model shapes --backend tensorrt-rtx --target sm86,sm120 -o engines/built/shapes-rtx
	$(BIN)/python examples/demo.py engines/built/shapes --prompt "$(PROMPT)" --output out

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread each: two workers keep two cores busy, and more would wait for each other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup

# Every model and variant; half an hour more on two cores.
test-thorough: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup -m thorough

# The families whose code depends most on other packages' versions, and every verb. Of Qwen-Image the engine against the
# model: the tests' small text encoder is configured as transformers 5 has it.
test-minimum: .venv-minimum/.ready
	OMP_NUM_THREADS=1 .venv-minimum/bin/pytest -q -n $(WORKERS) --dist loadgroup tests/cli tests/bundle/test_bundle.py \
	    tests/runtime/test_flux_pipeline.py \
	    tests/runtime/test_qwen_image_pipeline.py::test_the_bundle_was_verified_and_its_graph_has_no_complex_numbers_no_float64_and_no_boolean_masks

.venv-minimum/.ready: pyproject.toml setup.py constraints-minimum.txt
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet torch==2.13.0
	.venv-minimum/bin/python -m pip install --quiet --constraint constraints-minimum.txt --editable ".[cpu,sign]" \
	    "pytest<9.2" pytest-xdist hypothesis
	touch $@

# About a quarter of an hour.
test-native: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup -m native

# About an hour and a quarter on two cores: 650 builds killed, 10,000 manifests, 3,000 steps of damaged ones, 1,300 damaged files,
# 3,000 command lines.
campaigns: venv
	ACCELAES_CAMPAIGN=whole OMP_NUM_THREADS=1 $(BIN)/pytest -q -s -m campaign tests/campaigns

# Triton compiles here instead of interpreting, as it does for the rest of the suite.
test-gpu: venv
	TRITON_INTERPRET=0 $(BIN)/pytest -q -m gpu -n $(GPU_WORKERS) tests/gpu

clean:
	rm -rf $(VENV) .venv-minimum build dist out *.egg-info
