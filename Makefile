PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
PROCESSES := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
SOURCES := pyproject.toml CMakeLists.txt $(wildcard adderize/csrc/* adderize/csrc/*/*)

.PHONY: help install mnist rv32i lint pytest test test-oldest docs dist zoo sanitize aarch64 format clean

help:
	@echo "make mnist        train an adder LeNet-5-BN on 5,000 real MNIST digits (no download)"
	@echo "make rv32i        the same for a core without a multiplier: integers, C, an emulated RV32I"
	@echo "make test         ruff, mypy, lint-imports and pytest (JOBS=2 processes, a gigabyte each)"
	@echo "make test-oldest  most of pytest with Python 3.11 and the oldest versions allowed"
	@echo "make docs         the documentation as a site, in build/site; fails on broken links"
	@echo "make dist         sdist and manylinux wheel in dist/, each tried in a fresh environment (Linux)"
	@echo "make zoo          convert every classification model of torchvision and timm (an hour of a core)"
	@echo "make sanitize     the C++ kernels under AddressSanitizer and UBSan"
	@echo "make aarch64      the wheel for aarch64 by cross compiler, and the kernels' tests under emulation"
	@echo "make format       let ruff and clang-format format the code"

install: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "adderize needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# All that `sanitize` needs: it runs while the rest is installed.
$(BIN)/cmake: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'cmake>=3.26'

$(INSTALLED): $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lint,test]'
	touch $@

mnist: $(INSTALLED)
	$(BIN)/python -m recipes.mnist --data embedded --batch-size 64 --max-steps 300

rv32i: $(INSTALLED)
	PATH=$(abspath $(BIN)):$$PATH docs/microcontroller.sh

test: lint pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pytest: export ADDERIZE_REQUIRE_NATIVE = 1
pytest: $(INSTALLED)
	$(BIN)/python -m pytest $(PROCESSES)

# The lower bounds of pyproject.toml. uv fetches Python 3.11 where it is not installed. Left out: machine
# code, which newer releases of Triton write, and benchmarks beside onnxruntime. torch 2.6 writes ONNX that
# protobuf 7 refuses.
UV := build/uv/bin/uv
OLDEST := build/oldest/bin
OLDEST_LEFT_OUT := tests/bench/test_bench.py tests/ops/test_register_loops.py \
	tests/ops/test_triton_channelwise_code.py tests/ops/test_triton_machine_code.py

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'

test-oldest: export ADDERIZE_REQUIRE_NATIVE = 1
test-oldest: $(UV)
	$(UV) venv --quiet --clear --python 3.11 build/oldest
	$(UV) pip install --quiet --python $(OLDEST)/python --resolution lowest-direct -e '.[test]' 'protobuf==6.*'
	$(UV) pip check --quiet --python $(OLDEST)/python
	PATH=$(abspath $(OLDEST)):$$PATH $(OLDEST)/python -m pytest $(PROCESSES) \
		$(addprefix --ignore=,$(OLDEST_LEFT_OUT))

docs: $(INSTALLED)
	$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m pytest --quiet tests/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: export ADDERIZE_REQUIRE_NATIVE = 1
dist: $(INSTALLED)
	rm -rf build/dist dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[release]'
	$(BIN)/python -m build --outdir build/dist
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/dist/*.whl
	! tar tzf build/dist/*.tar.gz | grep '/\.venv/'
	cp build/dist/*.tar.gz dist
	for file in dist/*; do \
		rm -rf build/dist/fresh && $(PYTHON) -m venv build/dist/fresh \
		&& build/dist/fresh/bin/python -m pip install --quiet --disable-pip-version-check "$$file" \
		&& build/dist/fresh/bin/python -I tests/smoke.py || exit 1; \
	done
	rm -rf build/dist

zoo: $(INSTALLED)
	$(BIN)/python -m tests.zoo.sweep --output build/zoo.jsonl --jobs $$(nproc)

sanitize: $(BIN)/cmake
	$(BIN)/cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DADDERIZE_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --parallel $(JOBS)
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure --parallel $(JOBS)

# It needs the Debian packages g++-aarch64-linux-gnu and qemu-user. The tests run the wheel's own library.
aarch64: export ADDERIZE_REQUIRE_NATIVE = 1
aarch64: $(INSTALLED)
	rm -rf build/aarch64
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[release]'
	_PYTHON_HOST_PLATFORM=linux-aarch64 CXX=aarch64-linux-gnu-g++ \
		CMAKE_ARGS='-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64' \
		$(BIN)/python -m build --wheel --outdir build/aarch64
	for driver in test_kernels test_u8; do \
		aarch64-linux-gnu-g++ -std=gnu++17 -O1 -fopenmp -Iadderize/csrc tests/csrc/$$driver.cpp \
			build/py3-none-linux_aarch64/libadderize.so -o build/aarch64/$$driver \
		&& qemu-aarch64 -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=build/py3-none-linux_aarch64 \
			build/aarch64/$$driver 6 || exit 1; \
	done
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --wheel-dir dist build/aarch64/*.whl

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i --style=file --fallback-style=none $$(git ls-files '*.cpp' '*.h')

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
