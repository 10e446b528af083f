# make demo   tune a real language model on real text (runs/demo)
# make test   run all tests
# make check  lint, types
# make docs   build the documentation (site/index.html)
# Each sets up a virtual environment in .venv from a bare Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SITE ?= site

.PHONY: demo test check docs clean

demo: $(STAMP)
	$(BIN)/gradless demo --out runs/demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir $(SITE)

# torch first and alone: with it in place, nothing else pulls another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,trainer,tensorboard]" \
		pytest pytest-xdist hypothesis ruff mypy "triton; sys_platform == 'linux'"
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs site
