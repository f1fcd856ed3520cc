# Two commands do everything: `make demo` and `make test`.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off
# whole files, in the order of tests/conftest.py
FILES := --dist loadfile --no-loadscope-reorder
# the networks that read the demo's words
READERS := ocr,ddddocr
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell command -v $(p) >/dev/null 2>&1 && \
	$(p) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $(p))))

.PHONY: demo test recipes chaos slow fuzz lint clean

demo: $(VENV)/.installed
	$(BIN)/pcpo-ray train words_pcpo_flux name=demo-$$(date +%Y%m%d-%H%M%S)

# three files at a time on two cores, as tests also wait; two where each has a cluster
test: $(VENV)/.installed-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 $(FILES) -m 'not ray and not recipes and not chaos'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(FILES) -m 'ray and not recipes and not chaos'

recipes: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(FILES) -m recipes

chaos: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(FILES) -m chaos

# both: what takes minutes
slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(FILES) -m 'recipes or chaos'

# configs drawn anew each time, so many of each model and test; one that fails is printed as overrides
fuzz: $(VENV)/.installed-test
	PCPO_FUZZ_EXAMPLES=$${PCPO_FUZZ_EXAMPLES:-100} OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/fuzz -k any_config

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one, or give make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# Exact versions from constraints.txt, by uv where it is there, by pip otherwise: a recent pip, as the one that comes with
# Python 3.11 takes minutes to choose among all that an index lists. Bytecode is made by all cores, where pip uses one;
# some packages carry files that no Python compiles.
define install
	@echo "installing into $(VENV); with torch's CUDA build this is about 5 GB and takes some minutes"
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --python $(BIN)/python -c constraints.txt -e "$(1)"; \
	else \
		$(PIP) "pip>=25" && $(PIP) --no-compile -c constraints.txt -e "$(1)" && \
		{ $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null || true; }; \
	fi
	touch $@
endef

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(call install,.[$(READERS)])

$(VENV)/.installed-test: $(VENV)/.made pyproject.toml constraints.txt
	$(call install,.[test])
	@touch $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
