# Two commands for a fresh machine: `make demo` and `make test`. Both install into $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# The release of triton that goes with the default torch; another torch brings or finds its own.
ifeq ($(TORCH),torch==2.13.0)
TRITON ?= triton==3.7.1
# timm imports torchvision. Of that there is no CPU build here, and beside a CPU torch its releases after this one fail
# at import ("operator torchvision::nms does not exist"); this one imports without its own kernels, which nothing needs.
TORCHVISION ?= torchvision==0.16.2
endif
# Another torch: name the release that goes with it.
TORCHVISION ?= torchvision
TIMM ?= timm>=1.0
SPIKINGJELLY ?= spikingjelly>=2.0,<3
BIN := $(VENV)/bin
# Named after the torch that was asked for, so that another TORCH installs again.
INSTALLED := $(VENV)/.installed-$(subst /,_,$(TORCH))
SOURCES := $(wildcard kernels/*/*.cpp kernels/*/*.cu kernels/*/*.cuh kernels/*/*.h) kernels/native/build.py

.PHONY: demo test lint sanitize install clean
demo: install
	$(BIN)/snn demo

test: install
	$(BIN)/python -m pytest

# The native CPU code under the address and undefined-behaviour sanitizers, every instruction set this machine has.
sanitize: install
	SNN_SANITIZE=all $(BIN)/python -m pytest tests/native/test_sanitizers.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typing && mkdir -p build/typing/snn_core
	ln -s $(CURDIR)/snn_core/* $(CURDIR)/kernels $(CURDIR)/datasets build/typing/snn_core/
	cd build/typing && $(abspath $(BIN))/python -m mypy --config-file $(CURDIR)/pyproject.toml -p snn_core

install: $(INSTALLED)

# SpikingJelly and timm go in without their dependencies: they require torchvision and torchaudio, which have no CPU
# build; torchvision itself would bring another torch.
$(INSTALLED): pyproject.toml setup.py $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)" $(TRITON) "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test,lint]"
	$(BIN)/python -m pip install --quiet --no-deps "$(SPIKINGJELLY)"
	$(BIN)/python -m pip install --quiet --no-deps "$(TIMM)" "$(TORCHVISION)"
	$(BIN)/snn doctor
	touch "$@"

clean:
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache kernels/native/*.so
