# make demo: see it work.  make test: everything that can be tested on this machine.
.DEFAULT_GOAL := help
.PHONY: help demo test check format clean
SHELL := /bin/sh
BIN := .venv/bin
INPUTS := pyproject.toml constraints-cpu.txt install.sh

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/.train ## install, make the demo data, train and evaluate a small CLIP (about 3 minutes)
	@$(BIN)/clipa submit pipeline --name demo --wait

test: .venv/.test check ## check, then all tests; says what is skipped and why (about 6 minutes)
	@$(BIN)/python -m pytest -q

check: .venv/.test ## format, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports >.venv/contracts.log || { cat .venv/contracts.log; exit 1; }

format: .venv/.test ## format and mend what can be mended
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .

clean: ## remove what make made (runs and caches of clipa stay)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build

.venv/.train: $(INPUTS)
	@./install.sh train
	@touch $@

.venv/.test: $(INPUTS)
	@./install.sh test
	@touch .venv/.train $@
