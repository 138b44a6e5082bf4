# Two commands are all there is to know: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-slow lint browser docs screenshots bench clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/.demo  ## Train a weight-decay sweep on real images and watch its ranks
	$(BIN)/python -m examples.mnist_weight_decay

test: .venv/.dev lint  ## Lint, check types, run the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: .venv/.dev .venv/.sweep  ## The tests that take more than half a minute
	$(BIN)/python -m pytest -q -m slow

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser:  ## Install a browser, for the tests and pictures of the Ranks tab
	command -v chromium || command -v google-chrome || apt-get install --yes chromium || $(BIN)/playwright install --with-deps chromium

docs: .venv/.dev  ## Write the generated pages of docs/ anew
	$(BIN)/python docs/generate_measures.py

screenshots: .venv/.dev browser  ## Take the pictures of the Ranks tab anew, of the logs of make demo
	$(BIN)/python docs/screenshots.py runs/mnist

bench: .venv/.bench  ## Print the benchmarks' tables
	$(BIN)/python -m benchmarks.spectra
	$(BIN)/python -m benchmarks.gradients
	$(BIN)/python -m benchmarks.collapse
	$(BIN)/python -m benchmarks.features
	$(BIN)/python -m benchmarks.krylov
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.dashboard
	$(BIN)/python -m benchmarks.compare

clean:
	rm -rf .venv runs

# One stamp a set of extras; constraints.txt pins what is tested.
.venv/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	$(if $(filter dev,$*),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/references.txt)
	touch $@
