# `make demo` and `make test` set up everything they need. Set-up is idempotent.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Small models on few cores: more threads than work cost more than they give.
export OMP_NUM_THREADS := 1
# Where bytecode is not kept, each of some 30 processes compiles torch anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow chaos check gpu-check miniature setup clean

demo: setup  ## the whole pipeline on a small generated corpus
	@$(PYTHON) -m miniature.demo

test: setup  ## the fast test suite
	@$(PYTHON) -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## the long tests
	@$(PYTHON) -m pytest -q -m slow

chaos: setup  ## kills at random over all stages, an hour at most
	@$(PYTHON) -m tests.pipelines.chaos

check: setup  ## lint, format, types, and who may import whom
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check --quiet .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache

gpu-check: PYTHON := python3
gpu-check:  ## speed on a GPU, in 10 minutes at most; `PYTHON=...` chooses the Python that has torch
	@$(PYTHON) -m benchmarks.gpu_check

miniature: setup  ## cells of the study that have no result yet, and docs/miniature.md; `CELLS='alignment/*'` runs some
	@$(PYTHON) -m miniature --results docs/miniature/results --page docs/miniature.md --notes docs/miniature/notes \
		$(if $(CELLS),--cells '$(CELLS)')

setup: $(STAMP)
	@command -v ffmpeg >/dev/null && command -v ffprobe >/dev/null || bash scripts/install-ffmpeg.sh

$(STAMP): pyproject.toml constraints.txt
	@command -v python3 >/dev/null || { echo "python3 is missing: install Python 3.11 or 3.12"; exit 1; }
	@python3 -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"got Python {v[0]}.{v[1]}, wanted 3.11 or 3.12: put one of them first on PATH")'
	@test -x $(PYTHON) || python3 -m venv $(VENV)
	@$(PYTHON) -m pip --quiet install "uv>=0.9"
	@echo "Installing packages into $(VENV) (about 7 GB) ..."
	@VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet -r pyproject.toml --group dev -c constraints.txt
	@VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip install --quiet --no-deps -e .
	@touch $@

clean:  ## removes what the demo made; the environment stays
	rm -rf .demo
