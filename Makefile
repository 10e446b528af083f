# make demo   tune a real language model on real text (runs/demo)
# make test   run the tests: every module, every row of every table
# make test-all   the sweep as well (make test-sweep: the sweep alone)
# make test-long  more kills, seeds and examples; its counts go to benchmarks/results/test-long.json
# make check  lint, types
# make docs   build the documentation (site/index.html); a warning is an error
# make reference   write tables of settings, commands, tasks and results anew, after a change of one
# Each sets up a virtual environment in .venv from a bare Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
SITE ?= site

.PHONY: venv demo test test-all test-sweep test-long check docs reference clean

venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/gradless demo --out runs/demo

# Which test belongs where: conftest.py.
test: $(STAMP)
	$(PYTEST)

test-all: $(STAMP)
	$(PYTEST) -m "not long"

test-sweep: $(STAMP)
	$(PYTEST) -m "sweep and not long"

test-long: $(STAMP)
	$(PYTEST) -m "long or hypothesis" --hypothesis-profile long --counts benchmarks/results/test-long.json

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python -W error -m mkdocs build --strict --site-dir $(SITE)

# The tables of docs/, from the fields, commands, tasks and results that they show.
reference: $(STAMP)
	$(BIN)/python docs/site/fields.py

# torch first and alone: with it in place, nothing else pulls another build. Its builds for CUDA bring their own triton;
# beside a build for the CPU it runs in its interpreter, for tests.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,peers,trainer,tensorboard]" \
		pytest pytest-xdist hypothesis ruff mypy nbclient ipykernel
	$(BIN)/python -c "import triton" 2> /dev/null || [ "$$(uname)" != Linux ] || \
		$(BIN)/pip install --quiet --disable-pip-version-check triton==3.9.0
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs site
