# Two commands do everything on a fresh machine: `make vqa` and `make test`.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
FUZZ_TIMES ?= 60
BIN := $(VENV)/bin
# What `accelerate config` would ask; override for your machines: make vqa LAUNCH="--multi_gpu --num_processes 8"
LAUNCH ?= --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: vqa nlvr2 vcr classification flickr30k pretraining test test-slow test-browser test-suites fuzz check format docs test-matrix dist detector golden bench bench-detectors clean

vqa: $(VENV)/.train ## train on the embedded corpus and score it
	$(BIN)/accelerate launch $(LAUNCH) examples/run_vqa.py --output_dir runs/vqa --resume

flickr30k: $(VENV)/.train ## the same for phrase grounding
	$(BIN)/accelerate launch $(LAUNCH) examples/run_$@.py --output_dir runs/$@ --resume

nlvr2 vcr classification: $(VENV)/.train runs/vqa/metrics.json ## the same for these, which start from the VQA model
	$(BIN)/accelerate launch $(LAUNCH) examples/run_$@.py --output_dir runs/$@ --resume

pretraining: $(VENV)/.train runs/flickr30k/metrics.json ## the same for pre-training, which starts from the Flickr30k model
	$(BIN)/accelerate launch $(LAUNCH) examples/run_$@.py --output_dir runs/$@ --resume

runs/vqa/metrics.json:
	$(MAKE) vqa

runs/flickr30k/metrics.json:
	$(MAKE) flickr30k

test: $(VENV)/.dev ## the default test suite, on two processes: make test WORKERS=8 on a larger machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-slow: $(VENV)/.dev ## longer tests: training processes, compilation
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-browser: $(VENV)/.dev ## the demo in Chromium; set CHROMIUM if it is not /usr/bin/chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser

test-suites: $(VENV)/.dev ## the common tests of transformers, from its source distribution on the package index
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m suites tests/transformers_suites

fuzz: $(VENV)/.dev ## hostile input at every door, about an hour on two processes; a minute: make fuzz FUZZ_TIMES=1
	OMP_NUM_THREADS=1 FUZZ_TIMES=$(FUZZ_TIMES) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --timeout 0 -m "not browser" tests/fuzz

check: $(VENV)/.dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs ## the site, in build/site; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-matrix: $(VENV)/.release ## quick tests over Pythons and versions: make test-matrix PYTHONS="3.11 3.12" LIBRARIES=lowest
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python .ci/matrix.py $(PYTHONS:%=--python %) $(LIBRARIES:%=--libraries %)

dist: $(VENV)/.release ## what is released, in dist/, built and checked; with TAG=v1.2.3 only if that is the version
	$(if $(TAG),test "$(TAG)" = "v$$($(BIN)/python -c "import runpy; print(runpy.run_path('modeling_visualbert/version.py')['__version__'])")")
	rm -rf dist build/lib
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

detector: $(VENV)/.dev ## train the region detector that ships with the package
	$(BIN)/accelerate launch $(LAUNCH) examples/train_detector.py --output_dir runs/detector --resume

golden: $(VENV)/.dev ## worst difference to the authors' code, case by case
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/golden_table.py

bench: $(VENV)/.dev ## our classes beside those of transformers: a table, and a line of benchmarks/results.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_stock.py

bench-detectors: $(VENV)/.dev ## time and memory of the region detectors of published size
	$(BIN)/python benchmarks/bench_detectors.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[train]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.train

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

$(VENV)/.release: constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt build check-wheel-contents twine uv
	touch $@

clean: ## remove what was built, trained models too
	rm -rf $(VENV) runs build dist *.egg-info
