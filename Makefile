# `make` lists the targets. Each builds what it needs from nothing: Python 3.11 and a package registry are enough.

PYTHON  ?= $(shell command -v python3.11 || command -v python3 || echo python3)
PROFILE ?= laptop
JOBS    ?= 1
RESULTS ?= reproduced

BIN       := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install reproduce-all report ablations pruning search test lint bench model-table methods oracle

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo "  settings (now):      PROFILE=$(PROFILE) RESULTS=$(RESULTS) JOBS=$(JOBS) PYTHON=$(PYTHON)"

install: $(INSTALLED) ## build the environment in .venv

$(INSTALLED): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make install PYTHON=/path/to/python3.11" >&2; \
	  exit 2; }
	test -x $(BIN)/uv || { "$(PYTHON)" -m venv .venv && $(BIN)/python -m pip install --quiet uv; }
	UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

reproduce-all: $(INSTALLED) ## train every cell of PROFILE into RESULTS, JOBS at once, then write tables and figures
	@status=0; \
	$(BIN)/nasbench-grow reproduce --profile $(PROFILE) --results $(RESULTS) --jobs $(JOBS) || status=$$?; \
	$(BIN)/nasbench-grow report --results $(RESULTS) || status=$$?; \
	echo "tables: $(RESULTS)/tables   figures: $(RESULTS)/figures"; \
	exit $$status

report: $(INSTALLED) ## write the tables and figures of RESULTS again
	$(BIN)/nasbench-grow report --results $(RESULTS)

ablations: $(INSTALLED) ## write the tables of docs/ablations.md again
	$(BIN)/nasbench-grow report --results results/ablations --document docs/ablations.md

pruning: $(INSTALLED) ## write the tables of docs/pruning.md again
	$(BIN)/nasbench-grow report --results results/pruning --document docs/pruning.md

search: $(INSTALLED) ## write the tables of docs/search.md again
	$(BIN)/nasbench-grow report --results results/search --document docs/search.md

# by stealing, the tests of a file mostly stay in one process and share what they set up;
# processes that tests start find PyTorch compiled to bytecode, which takes each of them longer than all else it does
test: $(INSTALLED) ## run the tests (two processes, offline)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(INSTALLED) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## measure step times, restructuring and start-up on this machine
	$(BIN)/python -m nasbench_grow.dev.bench

methods: $(INSTALLED) ## write docs/methods.md again, from the methods' own files
	$(BIN)/python -m nasbench_grow.dev.method_page

model-table: $(INSTALLED) ## try models of timm, torchvision and by hand, and write docs/models.md again
	$(BIN)/python -m nasbench_grow.dev.model_table

oracle: $(INSTALLED) ## train the oracle's networks, JOBS at once, and write its table (ten hours on two cores)
	$(BIN)/python -m nasbench_grow.dev.oracle --jobs $(JOBS)
