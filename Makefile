# Two commands: `make run` shows the whole loop, `make test` proves it. Both install what they need into .venv first.
# Paths are relative throughout, so that a checkout below a folder with a space in its name works too.

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
ENGINE ?= docker
VARIANT ?= gpu
VERSION ?= 0.1.0

.PHONY: help install run test test-slow lint format peers serving-peers bench compile images image-sizes lock clean

help:               ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)   ## create .venv with everything

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

run: install        ## run the drill on the embedded digits: attack, alarm, retraining, recovery
	$(BIN)/python -m pipelines.cli drill --dataset digits

# Two files at a time, in the order of the rooms, on a thread each: two threads on a core that is taken cost more than one.
test: install       ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: install  ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: install       ## check style
	$(BIN)/python -m ruff check .

format: install     ## mend what style can mend by itself
	$(BIN)/python -m ruff check --fix .

peers:              ## the environment of the libraries that benchmarks of training and detection need
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/training.txt

serving-peers:      ## the environments of the servers that the serving benchmark compares with
	for name in mlserver kserve; do \
	  test -x .venv-$$name/bin/python || $(PYTHON) -m venv .venv-$$name || exit 1; \
	  .venv-$$name/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/$$name.txt || exit 1; \
	done

bench: install peers ## the small version of every benchmark
	for file in $$(grep -l '__main__' benchmarks/[a-z]*.py) benchmarks/front benchmarks/libraries benchmarks/serving \
	    benchmarks/training; do \
	  $(BIN)/python -m "benchmarks.$$(basename $$file .py)" --quick || exit 1; \
	done

compile: install    ## write the pipeline's IR YAML to build/pipeline.yaml
	$(BIN)/python -m pipelines.cli compile build/pipeline.yaml

images:             ## build both images; ENGINE=podman and VARIANT=cpu change how
	for target in steps serving; do \
	  case $$target in steps) tag=$(VERSION)-python3.11 ;; *) tag=$(VERSION) ;; esac; \
	  $(ENGINE) build --target $$target -t redoubt/$$target:$$tag --build-arg VARIANT=$(VARIANT) \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
	    $(BUILD_ARGS) . || exit 1; \
	done

image-sizes: install ## what both images weigh, and what that is made of
	$(BIN)/python -m benchmarks.image --engine $(ENGINE) --quick

lock: install       ## pin what the image is built from, in requirements/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python requirements/lock.py

clean:              ## remove what runs left behind; the environment stays
	rm -rf .redoubt build .pytest_cache .ruff_cache
