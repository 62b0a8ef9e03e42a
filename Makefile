# make demo: see it work.  make test: everything that can be tested on this machine.
.DEFAULT_GOAL := help
.PHONY: help demo test test-long chaos science check format lock clean train-env test-env
BIN := .venv/bin
# Where this is set, each of the many processes would compile torch and all the rest anew: 1.3 s of CPU each.
unexport PYTHONDONTWRITEBYTECODE

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
	@echo
	@echo "PYTHON=/path/to/python3 chooses the Python, TORCH=cpu|cuda|keep the build of torch: see install.sh"

demo: train-env ## install, make the demo's data, pre-train, fine-tune and evaluate a small CLIP (about 3 minutes)
	@$(BIN)/clipa submit pipeline --name demo --wait

test: check ## check, then all tests; what is skipped says why (20 to 25 minutes)
	@echo "tests:"
	@$(BIN)/python -m pytest --quiet

test-long: test-env ## the tests that take longest, compilation among them (about 2 minutes)
	@$(BIN)/python -m pytest --quiet -m long

chaos: test-env ## N random faults (50) on random small runs on a real SLURM; RESULTS=FILE goes on where it stopped
	@$(BIN)/python -m tests.slurm.chaos --n $(or $(N),50) --results $(or $(RESULTS),chaos.jsonl)

science: train-env ## few tokens against all, at equal compute, three seeds (4 minutes of processor time): docs/science.md
	@$(BIN)/python -m clipa.bench.science --to science

bench-gpu: train-env ## on one GPU, 8 minutes: B/16 and L/16 beside open_clip, calibrations, days of the paper's pipelines
	@$(BIN)/clipa bench train --all

check: test-env ## format, lint, types, import contracts (half a minute)
	@began=$$(date +%s); echo "format, lint, types, import contracts:"; \
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && \
	{ $(BIN)/lint-imports >.venv/contracts.log && tail -n 1 .venv/contracts.log || { cat .venv/contracts.log; false; }; } && \
	echo "checked in $$(($$(date +%s) - began)) s"

format: test-env ## format, and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: test-env ## write the image's lock files anew from pyproject.toml
	@$(BIN)/python docker/lock.py

clean: ## remove what make made; your runs and clipa's cache in your home stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build

train-env:
	@sh ./install.sh train

test-env:
	@sh ./install.sh test
