# `make test` and `make demo` need Python 3.11 with venv, git, make and g++; they install the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(wildcard csrc/*.cpp csrc/*.h csrc/*.cu)
SANITIZED := build/sanitized
NATIVE_TESTS := $(addprefix tests/test_,philox.py permute.py shares.py reference.py sampler.py caps.py checkpoints.py plan.py batches.py \
	ledger.py journal.py megatron_arrays.py promises.py grid.py)

# The Megatrons that the tests run, in folders of their own: they must not come with a torch.
MEGATRONS := build/megatron-core-0.19.2/.installed build/megatron-core-0.16.1/.installed

.PHONY: all test megatron deepspeed demo lint format sanitize bench gpu clean

all: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation 'deepspeed>=0.19.6'
	@touch $(STAMP)

test: $(STAMP) megatron deepspeed
	$(BIN)/pytest

megatron: $(MEGATRONS)

# The oldest DeepSpeed that is supported, for the tests; the newest is in the environment.
deepspeed: build/deepspeed-0.19.6/.installed

build/deepspeed-%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(@D) deepspeed==$*
	@touch $@

# From 0.17 on megatron-core asks for Python 3.12; it is built from source here, and works with 3.11.
# A package has no Makefile for the helpers that it has compiled already; Megatron runs make there.
build/megatron-core-%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(BIN)/pip install --quiet --no-deps --ignore-requires-python --no-build-isolation \
		--target $(@D) megatron-core==$*
	ls $(@D)/megatron/core/datasets/helpers_cpp.*.so
	test -e $(@D)/megatron/core/datasets/Makefile || echo default: > $(@D)/megatron/core/datasets/Makefile
	@touch $@

# `make demo METHOD=odm` lets a method steer the run, into demo-out-odm/.
demo: $(STAMP)
	$(BIN)/python examples/demo/run.py $(if $(METHOD),--out demo-out-$(METHOD) --method $(METHOD),--out demo-out)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(wildcard csrc/*.cpp csrc/*.h csrc/*.cu)
	$(BIN)/mypy
	$(BIN)/stubtest mixcore._core --allowlist tests/stubtest_allow.txt

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.cpp csrc/*.h csrc/*.cu)

# AddressSanitizer and UndefinedBehaviorSanitizer. The interpreter itself is not instrumented, so
# the runtimes are preloaded; leaks are the interpreter's, not looked for.
sanitize: $(STAMP)
	MIXCORE_SANITIZE=1 MIXCORE_CUDA=0 $(BIN)/python setup.py --quiet build \
		--build-lib $(SANITIZED) --build-temp build/sanitized-objects
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		MIXCORE_SANITIZE=1 PYTHONPATH=$(SANITIZED) $(BIN)/pytest -p no:cacheprovider $(NATIVE_TESTS)

bench: $(STAMP) megatron
	$(BIN)/python bench/run.py
	$(BIN)/python bench/controller.py
	$(BIN)/python bench/megatron_startup.py

# On a machine with an NVIDIA GPU, a torch with CUDA and nvcc: build, tests, sanitizer, bench.
gpu:
	PYTHON=$(PYTHON) tools/gpu_session.sh

clean:
	rm -rf $(VENV) build demo-out demo-out-* *.egg-info mixcore/*.so
