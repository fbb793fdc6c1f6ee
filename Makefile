# Everything runs from .venv, which the first target that needs it makes.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo real test test-fast nightly lint format bench schema constraints clean

demo: $(STAMP)
	$(BIN)/qb run sweeps/demo.yaml
	@$(BIN)/qb report runs/demo

real: $(STAMP)  ## real nets on every backend
	$(BIN)/qb run sweeps/real.yaml
	@$(BIN)/qb report runs/real

test: $(STAMP)  ## two at a time: those with a real Ray mostly wait
	$(BIN)/pytest --numprocesses=2 --dist=loadgroup -m "not nightly"

test-fast: $(STAMP)  ## two minutes: no Ray, no framework, nothing killed
	$(BIN)/pytest -m "not ray and not frameworks and not kills"

nightly: $(STAMP)  ## ten minutes: what is slow and rare, and fifty random kills
	QB_KILLS=50 $(BIN)/pytest -m nightly

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## one by one: they must not run beside other load
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==2.13.0" --editable ".[bench]"
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/simulated.py
	$(BIN)/python benchmarks/sensitivity.py
	$(BIN)/python benchmarks/scheduler.py
	$(BIN)/python benchmarks/dispatch.py
	$(BIN)/python benchmarks/dispatch.py --growth
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/boards.py
	$(BIN)/python benchmarks/real_cells.py

schema: $(STAMP)
	$(BIN)/qb schema > sweeps/sweep.schema.json

# The local part of torch's version (+cpu, +cu…) is left out: the pin is right for both.
constraints: $(STAMP)
	(sed -n '/^#/p' constraints.txt; $(BIN)/pip freeze --all --exclude-editable \
		| grep -vE '^(pip|wheel)==' | sed -E 's/^torch==.*/torch==2.13.0/') > $(VENV)/constraints.new
	mv $(VENV)/constraints.new constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

# torch comes first in the call so that its pin, and with it the CPU build where pip has
# one, is settled before anything that merely needs "some torch". basic-pitch comes without the
# packages it asks for, an old TensorFlow among them: only its model files are used.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt "torch==2.13.0" \
		--editable ".[all,dev,models]"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps basic-pitch
	touch $@
