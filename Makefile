# Everything the project needs is installed into .venv; nothing else on the machine is touched.
#   make demo       the demo: LoRA against full fine-tuning on the built-in model, in under five minutes
#   make test       the tests            make test-slow   the long ones too
#   make check      format, lint, types, layers, tests    make bench   what there is to measure
#   make campaign   inputs of every kind at every entrance, studies with a fault in each (docs/reliability.md)
#   make check-pages  the example reports in Chromium: accessibility, overflow (needs Chromium and npm)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow check check-pages campaign bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/tsugiki demo

# In two workers of one thread each. fp32 unless TSUGIKI_CPU_BF16 says otherwise; what depends on it is repeated in bf16.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(VENV)/.installed-test
	$(PYTEST)
	TSUGIKI_CPU_BF16=1 $(PYTEST) -m "precision and not slow and not gpu"

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m "not gpu"

check: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

check-pages: $(VENV)/.installed-test
	$(BIN)/python tests/pages/check_pages.py

campaign: $(VENV)/.installed-test
	$(BIN)/python -m tests.campaign.doors --seed 0 --page docs/reliability.md
	$(BIN)/python -m tests.campaign.faults --seed 0 --page docs/reliability.md

bench:
	@echo "Each benchmark is a script with its own words on what it needs:"
	@ls benchmarks/*.py benchmarks/*/*.sh benchmarks/*/*.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12" && exit 1)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[parquet,test]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .pages .mypy_cache .ruff_cache .pytest_cache .hypothesis
