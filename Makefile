# Needs make and Python 3.11 or newer; everything else comes from the package registry into .venv and .venv-test.
#
#   make demo     the whole job on this machine, on real data
#   make test     check, build the wheel, install it into a clean environment, run the tests against it
#   make check    ruff (rules and format) and mypy --strict
#   make bench    benchmarks: tables and JSON
#   make serve    a server on this machine, data in ./mailboat-data
#   make soak     the long lane of the tests
#   make coverage of it, only what measures the branch coverage of what keeps and delivers records
#   make clean    remove what the targets above have made (but not ./mailboat-data)
#
# Variables: PYTHON (interpreter for the environments), ARGS (more arguments for demo, serve, bench and pytest),
# WORKERS (test processes, default 2; 0 runs the tests in the one process).

VENV      ?= .venv
TEST_VENV ?= .venv-test
WORKERS   ?= 2
ARGS      ?=
DATA      ?= ./mailboat-data
COVERAGE  := --cov --cov-report=term-missing:skip-covered

# The first interpreter that runs, is new enough and can make environments: a name on PATH may be a stub for none of these.
SUITABLE  := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON    ?= $(shell for name in python3.11 python3 python3.12 python3.13 python3.14 python; do \
                 if "$$name" -c '$(SUITABLE)' >/dev/null 2>&1; then echo "$$name"; break; fi; done)

PARTS     := agent protocol server cli
PACKAGES  := $(foreach part,$(PARTS),-p mailboat.$(part))
OTHERS    := $(wildcard tests bench examples tools)
# Every file that is installed. Names with blanks are not supported, and there are none.
SOURCES   := $(shell find $(PARTS) -type f ! -name '*.py[co]' | LC_ALL=C sort)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_NO_INPUT := 1
# Settings of the caller's environment that would let other modules in.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.PHONY: demo test check bench serve soak coverage clean wheel-installed FORCE
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(VENV)/bin/mailboat demo $(ARGS)

serve: $(VENV)/.installed
	$(VENV)/bin/mailboat serve --data $(DATA) $(ARGS)

bench: $(VENV)/.installed
	$(VENV)/bin/python -m bench $(ARGS)

check: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@# Two runs: the packages under their installed names (shown as the files they link to), then the rest as files.
	@echo "mypy $(PACKAGES)"; $(VENV)/bin/mypy $(PACKAGES) >.make/mypy.txt 2>&1; status=$$?; \
	    sed 's|^build/__editable__[^/]*/mailboat/||' .make/mypy.txt; exit $$status
	$(VENV)/bin/mypy $(OTHERS)

# pytest is called by its script, not with `python -m`, which would put the repository on sys.path. Whatever keeps records
# is to be covered, branch by branch, when all tests run: pyproject.toml says what that is.
test: check wheel-installed
	MAILBOAT_TEST_WHEEL=1 $(TEST_VENV)/bin/pytest -n $(WORKERS) --dist worksteal $(or $(ARGS),$(COVERAGE))

soak: wheel-installed
	MAILBOAT_TEST_WHEEL=1 MAILBOAT_TEST_PROFILE=soak $(TEST_VENV)/bin/pytest -m soak --timeout 0 $(ARGS)

# The tests during which it is measured; see tests/conftest.py.
MEASURED  := $(addprefix tests/,unit/agent unit/protocol unit/uploads model faults conformance)
coverage: wheel-installed
	MAILBOAT_TEST_WHEEL=1 $(TEST_VENV)/bin/pytest -n $(WORKERS) --dist worksteal $(MEASURED) $(COVERAGE) $(ARGS)

clean:
	rm -rf $(VENV) $(TEST_VENV) .make build dist mailboat.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find $(PARTS) $(OTHERS) -name __pycache__ -type d -prune -exec rm -rf {} +

# A strict editable install links file by file, so it is done again when a file comes or goes, not when one changes.
.make/sources: FORCE
	@mkdir -p .make
	@printf '%s\n' $(SOURCES) >.make/sources.new
	@if cmp -s .make/sources.new .make/sources; then rm .make/sources.new; else mv .make/sources.new .make/sources; fi

# Without isolation: what builds it is in the environment already, and need not be fetched each time.
$(VENV)/.installed: pyproject.toml .make/sources
	@test -n "$(PYTHON)" || { echo "mailboat needs Python 3.11 or newer with the venv module (on Debian and Ubuntu: the" \
	    "package python3-venv). None was found on PATH; name one with: make PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(VENV)/bin/pip || "$(PYTHON)" -m venv --clear $(VENV)
	$(VENV)/bin/pip install -qq 'setuptools>=77'
	$(VENV)/bin/pip install -qq --no-build-isolation --editable '.[all,dev]' --config-settings editable_mode=strict
	@touch $@

# The wheel is built from a copy holding only what belongs into it, in a folder of its own: setuptools takes up again
# whatever lies in ./build, files deleted long ago included.
.make/wheel: $(VENV)/.installed $(SOURCES) $(wildcard README.md LICENSE)
	@rm -rf .make/source .make/wheel.new && mkdir -p .make/source
	cp -R pyproject.toml $(wildcard README.md LICENSE) $(PARTS) .make/source
	find .make/source -name __pycache__ -type d -prune -exec rm -rf {} +
	$(VENV)/bin/python -m build --wheel --no-isolation --outdir .make/wheel.new .make/source >.make/build.txt 2>&1 \
	    || { cat .make/build.txt; exit 1; }
	@rm -rf .make/wheel .make/source && mv .make/wheel.new .make/wheel && ls .make/wheel/*.whl

wheel-installed: $(TEST_VENV)/.installed

# First the new wheel alone, since its version has not changed; then whatever it or the tests need and is missing.
$(TEST_VENV)/.installed: .make/wheel
	test -x $(TEST_VENV)/bin/pip || "$(PYTHON)" -m venv --clear $(TEST_VENV)
	$(TEST_VENV)/bin/pip install -qq --force-reinstall --no-deps .make/wheel/*.whl
	$(TEST_VENV)/bin/pip install -qq "$$(echo .make/wheel/*.whl)[all,test]"
	@touch $@
