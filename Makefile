# make train   set up .venv and run the main job: teach a tiny K2 by reinforcement learning
# make test    set up .venv and run every check (lint, types, import contracts, tests)
# make test-long   the whole runs that it leaves out
# make setup EXTRA=cuda   the same set-up for a machine with an NVIDIA GPU

PYTHON ?= python3.11
VENV := .venv
# That of the last set-up: `make train` after `make setup EXTRA=cuda` keeps to it.
EXTRA ?= $(if $(wildcard $(VENV)/installed-cuda),cuda,cpu)
BIN := $(VENV)/bin
LOCK := requirements-$(EXTRA).lock
STAMP := $(VENV)/installed-$(EXTRA)
UV_VERSION := 0.13.9
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# A local wheel folder that pip is configured with is where a mirror keeps large wheels; uv does not look there by itself.
# For CPU only: torch 2.13.0+cpu would satisfy the CUDA lock's torch 2.13.0 too.
ifeq ($(EXTRA),cpu)
ifndef UV_FIND_LINKS
export UV_FIND_LINKS := $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
endif
endif
RECIPE ?= quickstart
# Without compiled modules each of a run's processes would spend its first ten seconds compiling torch and vLLM.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup sandbox train test test-long lint lock clean

setup: $(STAMP) sandbox

# Code rewards run untrusted programs under bubblewrap. Where apt may not be used, the command that needs it says what to do.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -n)
sandbox:
	@command -v bwrap >/dev/null || { command -v apt-get >/dev/null && \
	  { $(SUDO) apt-get install -y -qq bubblewrap >/dev/null 2>&1 || \
	    { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq bubblewrap; } >/dev/null 2>&1; }; } || \
	  echo "bubblewrap is missing and could not be installed: code rewards need it (Debian, Ubuntu: apt-get install bubblewrap)" >&2

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)"

# The lock is complete, so nothing is resolved: --no-deps. An install that finds no CPU build of torch is retried
# with PyTorch's own index. The stamp is written last, the other extra's removed first: an interrupted set-up starts again.
$(STAMP): $(LOCK) pyproject.toml | $(BIN)/uv
	rm -f $(filter-out $@,$(wildcard $(VENV)/installed-*))
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $(LOCK) \
	  || { test "$(EXTRA)" = cpu && echo "trying again with $(TORCH_CPU_INDEX)" && \
	       $(BIN)/uv pip install --python $(BIN)/python --no-deps --index-strategy unsafe-best-match \
	         --extra-index-url $(TORCH_CPU_INDEX) -r $(LOCK); }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -W ignore -c "import rl.train, rl.learner, rollout.engine, rewards.judge" 2>/dev/null || true
	touch $@

train: setup
	$(BIN)/temper train $(RECIPE)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

# Whole runs beyond those of `make test`, which must end within half an hour on two slow cores.
test-long: setup
	$(BIN)/python -m pytest -m long

# Resolves the locks anew. torchvision, torchaudio and torchcodec are CUDA builds on PyPI and unused on CPU; the package
# `kernels` would be mistaken by transformers for ours. The hash of torch is dropped: mirrors repack that wheel.
lock: $(BIN)/uv
	printf '%s ; python_version < "3"\n' kernels torchvision torchaudio torchcodec > $(VENV)/exclude-cpu.txt
	printf '%s ; python_version < "3"\n' kernels > $(VENV)/exclude-cuda.txt
	for extra in cpu cuda; do \
	  if [ $$extra = cuda ]; then unset UV_FIND_LINKS; fi; \
	  $(BIN)/uv pip compile pyproject.toml --quiet --extra $$extra --group dev --override $(VENV)/exclude-$$extra.txt \
	    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate --no-header \
	    -o requirements-$$extra.lock || exit 1; \
	done
	$(BIN)/python -c "import pathlib, re; p = pathlib.Path('requirements-cpu.lock'); \
	  p.write_text(re.sub(r'(torch==\S+\+cpu) \\\\\n( +--hash=\S+( \\\\)?\n)+', r'\1\n', p.read_text()))"

clean:
	rm -rf $(VENV) build dist
