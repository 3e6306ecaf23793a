# The commands of this project. `make help` lists them under the headings that begin with ##@.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

HASH := \#
# The first suitable Python.
IS_FIT := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
BASE_PYTHON ?= $(or $(shell for name in python3 python3.11 python3.12 python3.13 python3.14; do \
    "$$name" -I -c '$(IS_FIT)' 2>/dev/null && { echo "$$name"; break; }; done),python3)
VENV := .venv
PYTHON := $(VENV)/bin/python
# With CONTAINER=image.sif the stages run in that image, and no installation is needed.
INSTALLED := $(if $(CONTAINER),,$(VENV)/installed.txt)
HOST_PYTHON := $(if $(CONTAINER),PYTHONPATH="$(CURDIR)/src" $(BASE_PYTHON),$(PYTHON))
STAGE_PYTHON := $(if $(CONTAINER),containers/python.sh,$(PYTHON))
# The site's settings may set RUNS.
LOAD_SITE := source slurm/python.bash && source slurm/site.bash && load_site && export RUNS &&

.PHONY: help install demo atlas-zeroshot atlas-5-shot atlas-5-shot-multi atlas-full atlas-demo report compare status logs cancel download site container container-test container-diff
.PHONY: lock test test-fast coverage fuzz test-newcomer test-cluster check-gpu prove lint perf
.PHONY: doctor docs clean
TARGETS := Makefile $(shell sed -n 's/^\.PHONY: //p' Makefile)
# A variable on the command line that nothing reads is a mistake, such as make creak STUDNET=x. That file has the list of all
# variables. A make that was started by another make also gets the other one's variables, so it does not check them.
VARIABLES := $(wildcard src/teacherlm/chain/variables.py)
GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),'$(name)'))
COMPLAINT := $(if $(and $(VARIABLES),$(GIVEN),$(filter 0,$(MAKELEVEL))),$(shell $(BASE_PYTHON) -I $(VARIABLES) $(GIVEN) 2>/dev/null))
$(if $(COMPLAINT),$(error $(COMPLAINT)))
# Each benchmarks/NAME.yaml is a target, unless NAME is one of the targets above: then run bash slurm/chain.sh NAME.
BENCHMARKS := $(filter-out $(TARGETS),$(shell ls benchmarks | sed -n 's/^\([A-Za-z0-9][A-Za-z0-9_.-]*\)\.yaml$$/\1/p'))
.PHONY: $(BENCHMARKS)

##@ start
help: ## list the targets
	@while IFS= read -r line; do \
	    if [[ $$line == '##@ '* ]]; then printf '\n%s\n' "$${line#* }"; continue; fi; \
	    [[ $$line =~ ^([a-z0-9_\ -]+|\$$\(BENCHMARKS\)):.*'## ' ]] || continue; \
	    line=$${line/'$$(BENCHMARKS):'/NAME:}; line=$${line/'$$(BENCHMARKS)'/'$(BENCHMARKS)'}; \
	    printf '  make %-20s %s\n' "$${line%%:*}" "$${line##*## }"; \
	done <$(firstword $(MAKEFILE_LIST))
	@printf '%s\n' '' "bash slurm/chain.sh --help lists the variables of a run, as in make creak STUDENT=bloomz-7b1 TASK=cot_tail;" \
	    "docs/reference/ has all variables, and all programs with their flags."

install: $(VENV)/installed.txt ## make .venv with every package at its pinned version

# It is made again if it belongs to another checkout, that is, after a move and in a copy.
$(VENV)/installed.txt: $(wildcard requirements/*.txt requirements/*.lock) pyproject.toml \
    $(shell grep -sqxF "$(HASH) checkout: $$(pwd -P)" $(VENV)/installed.txt || echo always)
	@"$(BASE_PYTHON)" -I -c '$(IS_FIT)' 2>/dev/null || { echo "error: Python 3.11, 3.12, 3.13 or 3.14 is needed, found" \
	    "$$("$(BASE_PYTHON)" -V 2>&1 || true); install one, or set BASE_PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(BASE_PYTHON)" -I requirements/install.py

.PHONY: always
always:

demo: $(INSTALLED) ## run the whole chain on the sample benchmark with small real weights, some minutes on a CPU
	@LIMIT=$${LIMIT:-48} NUM_TOKENS=$${NUM_TOKENS:-48} EPOCHS=$${EPOCHS:-2} LAUNCHER=local bash slurm/chain.sh sample
	@printf '%s\n' '' "Look at the page that the line above names: the teacher's texts, the losses, each answer." \
	    "Type next: make sample (all 160 claims, 10 epochs), or make creak STUDENT=bloomz-7b1 on a GPU." \
	    "For a cluster: make doctor, and docs/tutorials/cluster.md; for your own benchmark: docs/tutorials/own-benchmark.md."

doctor: ## print what this machine has and lacks for each stage, and how to fix it
	@if [[ -x $(PYTHON) ]]; then $(PYTHON) src/teacherlm/chain/doctor.py; else $(BASE_PYTHON) src/teacherlm/chain/doctor.py; fi

##@ run
$(BENCHMARKS): $(INSTALLED) ## run the whole chain on a benchmark ($(BENCHMARKS)), as in: make creak STUDENT=bloomz-7b1
	@bash slurm/chain.sh $@

atlas-zeroshot atlas-5-shot atlas-5-shot-multi atlas-full: $(INSTALLED) ## run an experiment with ATLAS on MMLU: make atlas-zeroshot DATA_DIR=... SIZE=xl (docs/how-to/atlas.md)
	@bash slurm/chain.sh $@

atlas-demo: $(INSTALLED) ## run retrieval and a reader on a small corpus, some minutes on a CPU
	@bash atlas/examples/demo.sh

##@ look
report: $(INSTALLED) ## make a page for each run: make report [RUN=runs/creak/all | BENCHMARK=creak LIMIT=200] OPEN=1
	@$(LOAD_SITE) RUNS="$${RUNS:-runs}" $(STAGE_PYTHON) -P -m teacherlm --called "make report" report $${RUN:+"$$RUN"} $${BENCHMARK:+--benchmark "$$BENCHMARK"} \
	    $${LIMIT:+--samples "limit-$$LIMIT"} $${OPEN:+--open}

compare: $(INSTALLED) ## make a page and tables that compare runs: make compare RUNS="creak/all sample/limit-48"
	@compared="$${RUNS:?which ones? make compare RUNS=\"creak/all creak/limit-200\"}"; unset RUNS; \
	    $(LOAD_SITE) RUNS="$${RUNS:-runs}" $(STAGE_PYTHON) -P -m teacherlm --called "make compare" compare $$compared $${OPEN:+--open}

##@ cluster
status: $(INSTALLED) ## show how far each stage of the chains on Slurm is, and why a stage failed
	@$(LOAD_SITE) $(HOST_PYTHON) -P -m teacherlm --called "make status" steer status

logs: $(INSTALLED) ## show the last lines of the jobs' logs: make logs STAGE=finetune
	@$(LOAD_SITE) $(HOST_PYTHON) -P -m teacherlm --called "make logs" steer logs

cancel: $(INSTALLED) ## cancel the chain that is under way; with CHAIN=... if there are several
	@$(LOAD_SITE) $(HOST_PYTHON) -P -m teacherlm --called "make cancel" steer cancel

download: $(INSTALLED) ## download what jobs without internet need, with the chain's variables: make download BENCHMARK=creak STUDENT=... LIMIT=...
	@bash slurm/download.sh "$${BENCHMARK:?which one? make download BENCHMARK=creak}"

site: $(INSTALLED) ## show the partitions and their limits; write slurm/site.env from them if there is none
	@$(HOST_PYTHON) -P -m teacherlm --called "make site" site

##@ container
container: ## build an image from its lock: make container IMAGE=cpu|gpu OUTPUT=teacherlm-cpu.sif
	@bash containers/build.sh

container-test: ## test an image, and run the demo in it: make container-test CONTAINER=teacherlm-cpu.sif
	@bash containers/test_image.sh "$${CONTAINER:-teacherlm-$${IMAGE:-cpu}.sif}"

container-diff: ## print the differences between two images: make container-diff A=one.sif B=other.sif
	@bash containers/diff.sh "$${A:?A=one.sif B=other.sif}" "$${B:?A=one.sif B=other.sif}"

##@ develop
lock: $(VENV)/installed.txt ## resolve the packages of the images and of make install again: containers/*.lock, requirements/*.lock
	@$(PYTHON) requirements/lock.py

docs: $(VENV)/installed.txt ## build the site of docs/, the code and the demo's report into site/; without a run of the demo it runs it first
	@$(PYTHON) docs/make_reference.py
	@[[ -f $${REPORT:-runs/sample/limit-48/report/index.html} ]] || $(MAKE) demo RUNS=runs LIMIT=48
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -P -m mkdocs build
	@echo "site/index.html: open it in a browser; it needs no server and no network"

test: $(VENV)/installed.txt ## run the tests
	@$(PYTHON) -P -m pytest --numprocesses $${TEST_WORKERS:-3} --dist worksteal

test-fast: $(VENV)/installed.txt ## run the tests of single modules, which start no programs
	@$(PYTHON) -P -m pytest --numprocesses $${TEST_WORKERS:-2} --dist worksteal tests/unit

coverage: $(VENV)/installed.txt ## run the tests of single modules, and print how much of each module they run
	@$(PYTHON) -P -m coverage erase
	@$(PYTHON) -P -m coverage run -m pytest -q --numprocesses $${TEST_WORKERS:-2} --dist worksteal tests/unit
	@$(PYTHON) -P -m coverage combine --quiet
	@$(PYTHON) -P -m coverage report

test-cluster: $(VENV)/installed.txt ## run the tests on a real Slurm on this machine (as root; installs its packages); WHOLE=1 runs all
	@bash tests/cluster/install.sh
	@$(PYTHON) -P -m pytest -m "$(if $(WHOLE),cluster,cluster and not slow)" --numprocesses $${TEST_WORKERS:-2} --dist loadgroup tests/cluster

test-newcomer: ## run the README's commands as an ordinary user in a minimal Debian (needs root): make test-newcomer [SUITE=bookworm|trixie|forky]
	@bash tests/newcomer/run.sh "$${SUITE:-trixie}"

fuzz: $(VENV)/installed.txt ## run the stages on damaged inputs, 10,000 times per subject: make fuzz [ONLY=manifests COUNT=1000 SEED=7]
	@PYTHONPATH=tests $(PYTHON) -P -m support.fuzz --count $${COUNT:-10000} \
	    --seed $${SEED:-0} $${ONLY:+--only "$$ONLY"}

check-gpu: ## run the tests that need a GPU and measure each stage, in 15 minutes; installs nothing: make check-gpu [OUTPUT=file]
	@python="$(PYTHON)"; [[ -x $$python ]] || python="$(BASE_PYTHON)"; \
	    "$$python" -I -c '$(IS_FIT)' 2>/dev/null || { echo "error: Python 3.11, 3.12, 3.13 or 3.14 is needed, found" \
	    "$$("$$python" -V 2>&1 || true); set BASE_PYTHON=/path/to/python3.12" >&2; exit 2; }; \
	    PYTHONPATH="$(CURDIR)/src:$(CURDIR)/tests" "$$python" -P -m support.gpu_check $${OUTPUT:+--output "$$OUTPUT"}

lint: $(VENV)/installed.txt ## check format, code, types and shell scripts
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/shellcheck --external-sources --check-sourced $$(git ls-files '*.sh' .ci/run)

prove: $(VENV)/installed.txt ## run the proofs on all real test sets, which take hours: make prove ONLY=creak
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} $(PYTHON) -P -m pytest -m slow $${ONLY:+-k "$$ONLY"}

perf: $(VENV)/installed.txt ## measure a stage beside the usual alternative: make perf STAGE=enhance
	@PYTHONPATH="$(CURDIR)" $(PYTHON) -P -m "perf.$${STAGE:?which one? make perf STAGE=enhance}" $${CREAK_DATA:+--data "$$CREAK_DATA"}

clean: ## remove .venv (runs/ and the user's caches stay)
	rm -rf $(VENV)

comma := ,
.DEFAULT:
	$(error no benchmark or target '$@'; benchmarks: $(subst $() ,$(comma) ,$(strip $(BENCHMARKS))); make help lists the targets)
