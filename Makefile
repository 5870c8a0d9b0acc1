# make demo   builds the shipped checkpoint twice and makes one prompt dense and accelerated (out/)
# make test   lint, types and the whole test suite
# make test-gpu   the tests that need a GPU, with whatever torch .venv has; GPU_WORKERS at a time
# All set up .venv first; PYTHON=python3.12 make venv chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

WORKERS ?= 2
GPU_WORKERS ?= 6
PROMPT ?= an intricate red star on the left, plain blue background

.PHONY: demo test test-thorough test-gpu lint venv clean

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

# Triton compiles here instead of interpreting, as it does for the rest of the suite.
test-gpu: venv
	TRITON_INTERPRET=0 $(BIN)/pytest -q -m gpu -n $(GPU_WORKERS) tests/gpu

clean:
	rm -rf $(VENV) build dist out *.egg-info
