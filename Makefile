# Every command sets up what it needs in .venv, from uv.lock, the first time and whenever the lock changes.
# A torch that works is kept, whether it is in .venv already or belongs to $(PYTHON); otherwise PyPI's comes with the rest.

PYTHON ?= python3
ARGS ?=
UV_VERSION := 0.13.9
BIN := .venv/bin

# Prints the folder that holds torch; fails where there is none that minigemm can use.
TORCH_HOME := import pathlib, torch; \
	assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 4); \
	print(pathlib.Path(torch.__file__).parents[1])

.DEFAULT_GOAL := help
.PHONY: help tour test lab notebooks docs bench clean

help:  ## list these commands
	@echo 'make COMMAND [ARGS="..."] [PYTHON=python3.12]'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 \2/p' Makefile | awk '{ printf "  %-4s %-10s", $$1, $$2; $$1 = $$2 = ""; print }'

tour: .venv/ready-run  ## run every stage on this machine and show what it did
	$(BIN)/python -m minigemm tour $(ARGS)

# Some tests start a Python of their own, which would compile all of torch's modules again if none may be kept.
test: export PYTHONDONTWRITEBYTECODE =
test: .venv/ready-dev  ## lint, check types, run the tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check --quiet .
	@echo 'mypy, beside the tests'; $(BIN)/python -m mypy >.venv/mypy.log 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS); tests=$$?; \
	wait $$types; types=$$?; echo 'mypy:'; cat .venv/mypy.log; \
	[ $$tests -eq 0 ] && [ $$types -eq 0 ]

lab: .venv/ready-course  ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyterlab --ServerApp.root_dir=notebooks $(ARGS)

notebooks: .venv/ready-dev  ## make the notebooks from their sources, outputs included
	$(BIN)/python notebooks/build.py $(ARGS)

docs: .venv/ready-docs  ## build the documentation into site/
	$(BIN)/zensical build --strict --clean $(ARGS)

bench: .venv/ready-run  ## measure the emulator on this machine
	$(BIN)/python -m minigemm bench --emulator $(ARGS)

clean:  ## remove .venv and everything that the commands wrote
	rm -rf .venv site .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/ready-%: pyproject.toml uv.lock | $(BIN)/uv
	@echo 'Setting up .venv ($*)'
	@prune=; if [ $* = docs ]; then prune='--prune torch'; \
	elif torch=$$($(BIN)/python -c '$(TORCH_HOME)' 2>/dev/null || $(PYTHON) -c '$(TORCH_HOME)' 2>/dev/null); then \
		echo "Keeping the torch in $$torch"; prune='--prune torch'; \
		echo "$$torch" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kept-torch.pth"; \
	fi; \
	$(BIN)/uv export --quiet --frozen --no-emit-project $(patsubst %,--extra %,$(filter-out run,$*)) $$prune \
		--output-file .venv/requirements.txt >/dev/null
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps --requirements .venv/requirements.txt --editable .
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit("minigemm needs Python 3.10 or newer: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
