# Two commands for a newcomer: `make serve` and `make test`.
PYTHON ?= python3
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: serve test soak check format demo bench docs clean

serve: .venv-serve/ready  ## set up the server's environment (no torch) and serve models/ on port 8000
	.venv-serve/bin/python -m service

test: .venv/ready  ## set up everything and run the tests
	.venv/bin/python -m pytest

soak: .venv/ready  ## faults of all kinds against a real server under load, about five minutes; ends with a ledger
	.venv/bin/python -m benchmarks.soak

check: .venv/ready  ## lint and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy service encoders training model_export benchmarks
	MYPYPATH=clients/python .venv/bin/mypy clients/python/viola_client

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

demo: .venv/ready  ## the whole chain on a few clips: train tiny, export, serve, embed
	.venv/bin/python -m benchmarks.demo

bench: .venv/ready  ## measure speed, 20 minutes on an idle machine, 10 more the first time; the tables land in benchmarks/README.md and docs/sizing.md
	.venv/bin/python -m benchmarks.peers.install
	.venv/bin/python -m benchmarks.overhead
	.venv/bin/python -m benchmarks.load
	.venv/bin/python -m benchmarks.training
	.venv/bin/python -m benchmarks.report
	.venv/bin/python -m benchmarks.sizing

docs:  ## the documentation's site, into build/site
	$(PYTHON) -m venv build/docs
	build/docs/bin/pip install --quiet 'mkdocs-material>=9.5'
	build/docs/bin/mkdocs build

clean:
	rm -rf .venv .venv-serve .venv-peers build

.venv-serve/ready: pyproject.toml
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/pip install --quiet '.[cpu,bulk]'
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet '.[cpu,bulk,otel,ray,train,dev]'
	.venv/bin/pip install --quiet --no-deps hearvalidator==2021.0.2 # its dependencies include TensorFlow, which it does not need
	touch $@
