# make demo [CT=path]   harmonizes a CT through the Slicer module's own logic; results in demo-output/
# make test             every check: ruff, then all tests
# make lint, make setup, make clean; make pictures: those of README and docs, from what make demo left
#
# The first run makes .venv in this folder and installs all that is needed into it; later runs start at once.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Where pip looks for a build of PyTorch without CUDA. Empty: PyPI's build (on Linux several GB, for NVIDIA GPUs).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CT ?=
DEMO_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet --quiet
# What Qt and VTK draw with, and a screen for machines without one (Debian's and Ubuntu's names).
SYSTEM := xvfb libegl1 libgl1 libxkbcommon0 libxkbcommon-x11-0 libdbus-1-3 libxcb-cursor0 libxcb-icccm4 \
	libxcb-keysyms1 libxcb-shape0 libxcb-render-util0 libxcb-image0 fonts-dejavu-core
# The real MRML scene and Qt, for the panel's tests and the demo. slicer-core is published for Python 3.11 alone.
PANEL := slicer-core PySide6-Essentials

.DELETE_ON_ERROR:
.PHONY: demo pictures test lint setup clean

demo: setup
	@PYTHONPATH= $(BIN)/python Testing/CTHarmonizeDemo $(if $(CT),--ct "$(CT)") $(DEMO_OPTIONS)

pictures: setup
	@$(BIN)/python Testing/CTHarmonizeDemo/pictures.py demo-output docs/images

test: lint
	@PYTHONPATH= $(BIN)/python -m pytest --durations=10 $(TEST_OPTIONS)

lint: setup
	@$(BIN)/python -m ruff check .

setup: $(VENV)/.packages

clean:
	rm -rf $(VENV) demo-output build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is made last: what was interrupted is done again. The tests of LPIPS bring their own networks: torchvision, on
# which it depends, breaks Lightning where its build does not fit torch's. pyradiomics is built from source, and its
# own description of what that needs is not complete.
$(VENV)/.packages: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "Installing CTHarmonize and the packages that it needs ..."
	@$(PIP) install --constraint constraints.txt --editable ".[train,test,evidence]"
	@$(PIP) install --no-deps lpips
	@{ $(PIP) install --constraint constraints.txt setuptools wheel cython versioneer && \
	  $(PIP) install --constraint constraints.txt --no-build-isolation pyradiomics; } >/dev/null 2>&1 || \
	  echo "Radiomic features are left out: pyradiomics needs a C compiler and Python's headers here."
	@if $(BIN)/python -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))"; then \
	  $(PIP) install --constraint constraints.txt $(PANEL); \
	else \
	  echo "The panel's tests and the demo are left out: they need Python 3.11, for which slicer-core is" \
	    "published (make clean, then PYTHON=python3.11)."; \
	fi
	@touch $@

# A wheel that pip finds on this computer comes before the network.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo "Installing PyTorch ..."
	@$(PIP) install --no-index --no-deps --constraint constraints.txt torch 2>/dev/null || \
	  $(PIP) install --no-deps --constraint constraints.txt torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@$(PIP) install --constraint constraints.txt torch
	@touch $@

$(VENV)/.python: | system-libraries
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "Python 3.10 or later is needed: name one with make PYTHON=..."; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

.PHONY: system-libraries
system-libraries:
	@missing=""; \
	if command -v dpkg-query >/dev/null; then \
	  for name in $(SYSTEM); do \
	    dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q "ok installed" || missing="$$missing $$name"; \
	  done; \
	  $(PYTHON) -c "import ensurepip" 2>/dev/null || missing="$$missing python3-venv"; \
	fi; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then sudo=""; elif sudo -n true 2>/dev/null; then sudo="sudo"; \
	else echo "System libraries are missing; install them with: sudo apt-get install$$missing"; exit 0; fi; \
	echo "Installing system libraries:$$missing"; \
	{ $$sudo apt-get -qq update || true; } && DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq install -y \
	  --no-install-recommends $$missing >/dev/null || \
	  echo "Some system libraries could not be installed; try: sudo apt-get install$$missing"
