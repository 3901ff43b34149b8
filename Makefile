# make demo       environment, convert, compile for this CPU, validate, generate: from a fresh clone
# make test       environment, ruff, mypy, all tests
# make packages   what the tests need of Debian (root)
# make clean      removes what the two made, the environment included
#
# PYTHON=python3.12   which Python makes the environment (3.10 or newer)
# TORCH=...           the PyTorch requirement installed for the reference

PYTHON ?= python3
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
GECKO := $(BIN)/gecko-mlc
PACKAGING := pyproject.toml CMakeLists.txt build/targets.toml gecko_mlc/__init__.py $(shell find gecko_mlc/native -type f)

DEMO := build/demo
CHECKPOINT := tools/demo
CONVERTER := $(shell find gecko_mlc/checkpoint -name '*.py') gecko_mlc/config.py
COMPILER := $(shell find gecko_mlc/compile gecko_mlc/vulkan relax_model tir_kernels -name '*.py')

.PHONY: demo test packages clean
.DELETE_ON_ERROR:

demo: $(DEMO)/cpu.so $(DEMO)/held_out.py
	@echo "== The library against the PyTorch reference"
	$(GECKO) validate $(DEMO) --lib $(DEMO)/cpu.so --text $(DEMO)/held_out.py
	@echo "== Text from the compiled model"
	@prompt="$$(printf 'def read_lines(path):\n    ')"; printf '%s' "$$prompt"; \
	$(GECKO) generate $(DEMO) --lib $(DEMO)/cpu.so -p "$$prompt" --max-tokens 200 --seed 0
	@echo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

packages:
	apt-get update
	apt-get install -y libvulkan-dev mesa-vulkan-drivers spirv-tools vulkan-validationlayers

clean:
	rm -rf $(VENV) $(DEMO) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(DEMO)/tensor-cache.json: $(CHECKPOINT)/model.safetensors $(CHECKPOINT)/params.json $(CONVERTER) | $(VENV)/.reference
	$(GECKO) convert-weight $(CHECKPOINT) -o $(DEMO) --quantization q0f32
	$(GECKO) gen-config $(CHECKPOINT) -o $(DEMO) --quantization q0f32

$(DEMO)/cpu.so: $(DEMO)/tensor-cache.json $(COMPILER) build/targets.toml
	$(GECKO) compile $(DEMO) --target cpu -o $@

# Source the demo model was not trained on, from this Python's own standard library.
$(DEMO)/held_out.py: tools/demo_corpus.py | $(DEMO)/tensor-cache.json
	$(BIN)/python -c 'import sys; from tools.demo_corpus import evaluation_text, stdlib; \
	  sys.stdout.buffer.write(evaluation_text(stdlib(), 8192).lstrip(b"\0"))' > $@

# One PyTorch release, named before the extra asks for a range: on Linux the newest build brings
# gigabytes of CUDA libraries that nothing here uses.
$(VENV)/.reference: $(PACKAGING) | $(BIN)/pip
	$(BIN)/pip install "$(TORCH)"
	$(BIN)/pip install -e ".[reference]"
	@touch $@

$(VENV)/.dev: $(VENV)/.reference
	$(BIN)/pip install -e ".[dev,reference]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1), wanted Python 3.10 or newer: make PYTHON=python3.x" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "make: $(PYTHON) has no venv, wanted it to make $(VENV): install it (Debian: python3-venv) or make PYTHON=python3.x" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
