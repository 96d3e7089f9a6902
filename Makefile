# make demo   a recommender, end to end, on this machine
# make test   the test suite
# make lint   ruff and mypy
# Each makes its own virtual environment; PYTHON names the interpreter it is made with. Tests run in
# PROCESSES at once, one a core unless told; what each takes of an imbalance, the other takes over.
PYTHON ?= python3
PROCESSES ?= auto

.PHONY: demo test lint clean

demo: .venv-demo/ready
	.venv-demo/bin/python -m examples.demo

test: .venv-test/ready
	.venv-test/bin/python -m pytest -n $(PROCESSES) --dist worksteal

lint: .venv-test/ready
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy

.venv-demo/ready: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv-test/ready: pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv-demo .venv-test .mypy_cache .ruff_cache .pytest_cache .hypothesis
