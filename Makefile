PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-deep check docs bench lock vendor

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## a simulated provider, a real gateway and two fleets, side by side in the terminal
	.venv/bin/interlock demo

serve: $(READY) ## the gateway on 127.0.0.1:7411
	.venv/bin/interlock serve

test: $(READY) ## the whole suite (minutes)
	$(PY) -m pytest -n 2 --dist worksteal -q

test-deep: $(READY) ## the long hunts: storms, soaks, exhaustive searches
	$(PY) -m pytest -n 2 --dist worksteal -q -m deep --timeout=3600

check: $(READY) ## format, lint, types and architecture (seconds)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PY) -m pytest -q tests/test_architecture.py

docs: $(READY) ## the documentation site, in build/site (any warning fails)
	$(PY) docs/build.py

bench: $(READY) ## the benchmarks, side by side with their peers
	$(PY) -m bench

lock: $(READY) ## resolve pyproject.toml again into hashed requirements/*.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --extra all --group dev pyproject.toml -o requirements/dev.txt
	.venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --extra all pyproject.toml -o requirements/all.txt

vendor: ## fetch the dashboard's vendored files again, with npm, and note their hashes
	$(PYTHON) tools/vendor.py

$(READY): pyproject.toml requirements/dev.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	test -x .venv/bin/uv || $(PY) -m pip install -q uv
	.venv/bin/uv pip sync -q --python $(PY) --require-hashes --compile-bytecode requirements/dev.txt
	.venv/bin/uv pip install -q --python $(PY) --no-deps -e .
	touch $(READY)
