# Two commands do everything on a fresh machine: `make demo` and `make test`. The rest is for daily work.
# Stamps in .stamps/ make a second run quick; `make clean` forgets them.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(p)),$(p))))
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install -q -c constraints.txt
EDIT   := --no-build-isolation -C build-dir=build/dev -e
OUT    ?= out

CPP      := $(wildcard kernels/src/*.cpp kernels/src/*.h)
CPP_MORE := $(wildcard kernels/examples/*.c tests/kernels/native/*.cpp tests/kernels/native/fuzz/* \
                       benchmarks/*.c benchmarks/*.cpp)
BUILD    := CMakeLists.txt kernels/src/CMakeLists.txt $(CPP)
SETTINGS := pyproject.toml constraints.txt
CMAKE    := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -S kernels
CASES    := build/cases
PYTEST   := $(BIN)/python -m pytest -n 2 --dist loadfile

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-all test-arm sanitize fuzz check format studio screenshots bench tables clean
help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: .stamps/sdk ## a trained model to a running, updated, rolled-back device (about a minute)
	$(BIN)/edgewright demo --out $(OUT)/demo --json $(OUT)/demo.json

test: .stamps/dev ## all tests but the slow ones
	$(PYTEST) -m "not slow and not gpu"

test-all: .stamps/dev ## the slow ones too
	$(PYTEST) -m "not gpu"

# An ARM core without extensions, one with the dot product, one with all: each must offer the paths named here.
ARM  := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
        -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
QEMU := qemu-aarch64-static -L /usr/aarch64-linux-gnu

test-arm: $(CASES) ## the ARM kernels, cross-compiled and emulated: every operator on every path
	@bash scripts/system-packages.sh arm
	$(CMAKE) -B build/arm $(ARM) >/dev/null
	$(CMAKE) -B build/arm-sanitize $(ARM) -DEDGEWRIGHT_SANITIZE=ON >/dev/null
	$(BIN)/cmake --build build/arm --target replay
	$(BIN)/cmake --build build/arm-sanitize --target replay
	$(QEMU) -cpu cortex-a53 build/arm/replay $(CASES) neon scalar
	$(QEMU) -cpu cortex-a76 build/arm/replay $(CASES) dotprod neon scalar
	$(QEMU) -cpu max build/arm/replay $(CASES) i8mm dotprod neon scalar
	ASAN_OPTIONS=detect_leaks=0 $(QEMU) -cpu max build/arm-sanitize/replay $(CASES)

sanitize: $(CASES) ## the C++ under AddressSanitizer, UBSan and ThreadSanitizer, every operator on every path
	@bash scripts/system-packages.sh sanitize
	$(CMAKE) -B build/sanitize -DEDGEWRIGHT_SANITIZE=ON >/dev/null
	$(BIN)/cmake --build build/sanitize --target replay threads fuzz
	build/sanitize/replay $(CASES)
	build/sanitize/threads $(CASES)
	build/sanitize/fuzz --replay tests/hostile/plans --out build/fuzz
	build/sanitize/fuzz $(CASES) --runs 20000 --seed 1 --out build/fuzz
	$(CMAKE) -B build/sanitize-threads -DEDGEWRIGHT_SANITIZE_THREADS=ON >/dev/null
	$(BIN)/cmake --build build/sanitize-threads --target threads
	build/sanitize-threads/threads $(CASES)

SECONDS := 300
SEED    := $(shell date +%s)

fuzz: $(CASES) ## the readers of plan.bin under changed plans, for SECONDS=300; a finding is kept in build/fuzz
	@bash scripts/system-packages.sh sanitize
	$(CMAKE) -B build/sanitize -DEDGEWRIGHT_SANITIZE=ON >/dev/null
	$(BIN)/cmake --build build/sanitize --target fuzz
	@echo "seed $(SEED)"
	build/sanitize/fuzz $(CASES) --seconds $(SECONDS) --seed $(SEED) --pairs 20000 --out build/fuzz
	PYTHONPATH=tests $(BIN)/python -m kernels.readers build/fuzz/pairs.bin

# Plans, inputs and the bits that reference.py gives for them.
$(CASES): .stamps/dev tests/kernels/cases.py tests/kernels/plans.py $(wildcard kernels/edgewright_kernels/*.py)
	PYTHONPATH=tests $(BIN)/python -m kernels.cases $(CASES) --each 40

check: .stamps/dev ## ruff, mypy --strict, import floors, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP) $(CPP_MORE)
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .stamps/dev ## mend what ruff and clang-format can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(CPP_MORE)

studio: .stamps/dev ## open the desktop studio
	@bash scripts/system-packages.sh window
	$(BIN)/edgewright-studio

screenshots: .stamps/dev ## draw the studio's pictures in docs/images anew
	$(BIN)/python -m pytest tests/studio/test_screenshots.py --update-screenshots

bench: bench-int8 ## INT8 inference against its peers (some ten minutes)

bench-%: .stamps/dev ## benchmarks/NAME.py: one measurement, written to benchmarks/results
	$(BIN)/python benchmarks/$*.py

tables: .stamps/dev ## write the tables in README and docs from benchmarks/results
	$(BIN)/python scripts/tables.py

clean: ## forget the environment and all builds
	rm -rf .venv .stamps build

# Set-up, in the order that keeps torch on its CPU build: first torch, then the rest under constraints.

.stamps/build-tools: scripts/system-packages.sh
	@mkdir -p .stamps
	@bash scripts/system-packages.sh build
	@touch $@

.stamps/venv: .stamps/build-tools
	@test -n "$(PYTHON)" || { echo "edgewright needs Python 3.11 or newer; none was found on PATH" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgewright needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	@touch $@

.stamps/torch: .stamps/venv
	$(BIN)/python -m pip install -q torch==2.13.0
	$(PIP) scikit-build-core nanobind cmake ninja
	@touch $@

.stamps/sdk: .stamps/torch $(SETTINGS) $(BUILD)
	$(PIP) $(EDIT) ".[sdk]"
	@touch $@

.stamps/dev: .stamps/sdk
	@bash scripts/system-packages.sh desktop
	$(PIP) $(EDIT) ".[all,dev]"
	@touch $@
