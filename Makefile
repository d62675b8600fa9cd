# Two commands for a newcomer: `make serve` and `make test`; `make test-service` for the server alone.
PYTHON ?= python3
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: serve test soak differential check format demo bench docs clean

serve: .venv-serve/ready  ## set up the server's environment (no torch) and serve models/ on port 8000
	@echo "The page will be at http://localhost:$${VIOLA_PORT:-8000}; VIOLA_PORT takes another port, Ctrl-C ends it."
	.venv-serve/bin/python -m service

test: .venv/ready  ## set up everything and run the tests
	.venv/bin/python -m pytest

test-%: .venv/ready  ## the tests of one package: test-service, test-encoders, test-training, test-model_export, …
	.venv/bin/python -m pytest tests/$*

soak: .venv/ready  ## faults of all kinds against a real server under load, about five minutes; ends with a ledger
	.venv/bin/python -m benchmarks.soak

differential: .venv/ready  ## sounds in thousands of shapes, heard by viola and by ffmpeg, about an hour
	.venv/bin/python -m pytest -m differential tests/differential

check: .venv/ready  ## lint and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy service encoders training model_export hear benchmarks
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
	@echo "Setting up the server's environment in .venv-serve: half a minute or more, once (690 MB on disk)."
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/pip install --quiet '.[cpu,bulk,text]'
	@touch $@

.venv/ready: pyproject.toml
	@echo "Setting up everything in .venv: some minutes, once (7 GB on disk)."
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet '.[cpu,bulk,otel,ray,train,dev]'
	.venv/bin/pip install --quiet --no-deps hearvalidator==2021.0.2 # its dependencies include TensorFlow, which it does not need
	@touch $@
