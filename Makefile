# Two commands are enough: `make quickstart` and `make test`. Everything is installed into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DOCS   := $(VENV)/.installed-docs
DEV    := $(VENV)/.installed-dev
RAY    := $(VENV)/.installed-ray
# The constraints pin a torch that has a CPU build; torch goes first so that nothing else drags another one in.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# vLLM wants another transformers than ours, so it has an environment of its own (tools/vllm_environment.py says how).
VLLM_BIN := .venv-vllm/bin
VLLM     := .venv-vllm/.installed

.PHONY: quickstart setup shell setup-vllm docs test test-vllm test-extras test-ray soak soak-ray bench bench-vllm gpu study study-recipes study-recipes-redrawn study-team study-variants study-judges study-svamp study-gsm8k study-cost recompute check fix seed wheel clean

quickstart: setup  ## learn on the embedded seed model, on two CPU cores
	$(BIN)/flow-dpo quickstart $(ARGS)

setup: $(STAMP)  ## the environment alone

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("flow-dpo needs Python 3.11 or newer, found %d.%d; name another: make PYTHON=python3.11 $(MAKECMDGOALS)" % v[:2])'
	@echo "Making the environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch: a few hundred MB, minutes on a slow line"
	@$(PIP) torch
	@echo "Installing flow-dpo and what it needs: about a minute"
	@$(PIP) -e .
	@touch $@

shell: setup  ## a shell in which flow-dpo is on the path; exit leaves it
	@echo "flow-dpo is on the path; exit leaves this shell"
	@PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" $${SHELL:-sh}

$(DEV): $(STAMP)
	@echo "Installing what tests and checks need"
	$(PIP) -e '.[dev]'
	touch $@

$(RAY): $(DEV)
	$(PIP) -e '.[ray]'
	touch $@

$(DOCS): $(STAMP)
	$(PIP) -e '.[docs]'
	touch $@

docs: $(DOCS)  ## the site of the documentation, in build/site; a warning fails
	$(BIN)/python -m tools.docs_site

setup-vllm: $(VLLM)  ## vLLM in .venv-vllm: the CPU build where there is no NVIDIA GPU

$(VLLM): pyproject.toml tools/vllm_environment.py
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python tools/vllm_environment.py
	touch $@

test-vllm: $(VLLM)  ## the tests that need vLLM, over a real server and in process
	$(VLLM_BIN)/python -m pytest -m vllm -W default $$(grep -rl mark.vllm tests --include=test_*.py) $(ARGS)

# What the trackers, lm-eval and bitsandbytes bring along is much, so that it has an environment of its own, too.
EXTRAS_BIN := .venv-extras/bin
EXTRAS     := .venv-extras/.installed
$(EXTRAS): pyproject.toml constraints.txt
	test -x $(EXTRAS_BIN)/python || $(PYTHON) -m venv .venv-extras
	$(EXTRAS_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(EXTRAS_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,trackers,eval,docs,quantised]'
	touch $@

test-extras: $(EXTRAS)  ## the tests of trackers, lm-eval, Inspect, quantised bases, site and notebook, with their packages
	OMP_NUM_THREADS=1 $(EXTRAS_BIN)/python -m pytest -m 'slow or not slow' tests/trackers tests/evaluate/test_lm_eval.py \
		tests/evaluate/test_inspect_log.py tests/models/test_quantization.py tests/test_docs.py $(ARGS)

test-ray: $(RAY)  ## the tests that start a Ray cluster, one by one: nothing else may be busy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ray -W default tests/workers $(ARGS)

soak-ray: $(RAY)  ## 20 kills of workers, learner ranks and head: half an hour
	$(BIN)/python -m tests.support.kill_cluster --kills 20

soak: $(DEV)  ## the long tests: 200 kills, 10,000 fuzzed files, 10,000 hostile answers
	$(BIN)/python -m tests.support.kill_runs --points 200
	$(BIN)/python -m pytest -m slow -s $(ARGS)

test: $(DEV)  ## the tests, in a few minutes: a process a core, up to eight, each on one thread
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

# MODEL=folder adds the rows that need a real model of half a billion parameters; THREADS=n measures on n threads.
BENCH := --num_threads $(or $(THREADS),1)
REAL  := $(if $(MODEL),--model_name_or_path $(MODEL))

bench: $(DEV)  ## every figure of benchmarks/results.json (hours; one alone: python -m benchmarks.playing)
	$(BIN)/python -m benchmarks.quickstart $(BENCH)
	$(BIN)/python -m benchmarks.starting
	$(BIN)/python -m benchmarks.verifier $(BENCH)
	$(BIN)/python -m benchmarks.verifier_rules --pairs tests/verify/hard_pairs.tsv
	$(BIN)/python -m benchmarks.depth $(BENCH)
	$(BIN)/python -m benchmarks.playing $(BENCH) $(REAL)
	$(BIN)/python -m benchmarks.online_dpo $(BENCH) $(REAL)
	$(BIN)/python -m benchmarks.profile_run $(BENCH) $(REAL)
	$(BIN)/python -m benchmarks.long_run $(BENCH)
	$(BIN)/python -m benchmarks.learner_vs_trl $(BENCH) $(REAL)
	$(BIN)/python -m benchmarks.whole_run $(BENCH) $(REAL)
	$(BIN)/python -m benchmarks.precision $(BENCH) $(REAL)
	$(BIN)/python -m benchmarks.ranks $(BENCH)
	$(BIN)/python -m benchmarks.workers $(BENCH) $(REAL)
	$(BIN)/python -m benchmarks.lag $(BENCH)
	$(BIN)/python -m benchmarks.viewer $(BENCH)
	$(BIN)/python -m tools.speed_table

gpu: $(DEV)  ## all that there is to measure on the GPU at hand, in ten minutes; resumes if interrupted
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-vllm: $(VLLM)  ## the figures of playing through vLLM, in its own environment
	$(VLLM_BIN)/python -m benchmarks.serving $(BENCH) $(REAL)

# A study goes on from the seeds that are published, which cost nothing again. With FRESH=1 all are made, in a folder of
# its own (runs/study-fresh) into which no published seed comes: interrupted, the same command continues there; remove
# the folder to begin anew.
FRESHLY := $(if $(FRESH),-fresh)
define study
	@mkdir -p $(2)/seeds studies/$(1)/seeds
	@$(if $(FRESH),:,cp -n studies/$(1)/seeds/*.json.gz $(2)/seeds/ 2>/dev/null || true)
	$(BIN)/flow-dpo compare --config studies/$(1)/settings.yaml $(if $(FRESH),--compare.output_dir $(2)) $(ARGS)
	cp $(2)/seeds/*.json.gz studies/$(1)/seeds/
	cp $(2)/comparison.json studies/$(1)/
	$(BIN)/python -m tools.study_tables studies/$(1)
	$(BIN)/python -m tools.figures --write
	$(BIN)/flow-dpo report studies/$(1)/comparison.json --output_dir studies/$(1)
endef

study: $(DEV)  ## the paper's table and its controls on the seed model, and their report (hours; more seeds: ARGS='--compare.num_seeds 12')
	$(call study,seed,runs/study$(FRESHLY))

study-recipes: $(DEV)  ## the neighbours of Flow-DPO on the seed model, at its tokens, and VinePPO's values (hours)
	$(call study,recipes,runs/study-recipes$(FRESHLY))
	$(BIN)/python -m benchmarks.step_values --num_problems 16 --results studies/recipes/step_values.json
	$(BIN)/python -m benchmarks.step_values --num_problems 16 --results studies/recipes/step_values.json \
		$(if $(FRESH),--named runs/study-recipes/seed0/vineppo_same_tokens) \
		--run runs/study-recipes$(FRESHLY)/seed0/vineppo_same_tokens

study-recipes-redrawn: $(DEV)  ## the pairs of recipes that were told apart, with other training problems for each seed (hours)
	$(call study,recipes-redrawn,runs/study-recipes-redrawn$(FRESHLY))

study-team: $(DEV)  ## the flow against its own Answer, votes at the same tokens, the paper's flow, and each part (hours)
	$(call study,team,runs/study-team$(FRESHLY))

study-judges: $(DEV)  ## whether Stop or Answer's own likelihood judges attempts better, from draws (half an hour)
	$(call study,judges,runs/study-judges$(FRESHLY))
	$(BIN)/python -m tools.judges keep runs/study-judges$(FRESHLY) --name seed
	$(BIN)/python -m tools.judges figures
	$(BIN)/python -m tools.figures --write

study-variants: $(DEV)  ## the paper's flow, varied: roles, Stop's likelier answer, alternatives, chunks (hours)
	$(call study,variants,runs/study-variants$(FRESHLY))

# These two need a chat model and the data, in folders of these names or linked so:
# ARGS='--model_name_or_path Qwen2.5-Coder-0.5B-Instruct --dataset_name SVAMP'
study-svamp: $(DEV)  ## the paper's table with a model of 0.5B on SVAMP (four hours on one core)
	$(call study,svamp,runs/study-svamp$(FRESHLY))

study-gsm8k: $(DEV)  ## the same on GSM8K
	$(call study,gsm8k,runs/study-gsm8k$(FRESHLY))

COST := 32000 64000 127000 254000
COST_RUNS := runs/cost$(FRESHLY)
study-cost: $(DEV)  ## accuracy over tokens, verdicts and seconds of what one would choose between (hours)
	for tokens in $(COST); do mkdir -p $(COST_RUNS)/$$tokens/seeds studies/cost/$$tokens/seeds; \
		$(if $(FRESH),true,cp -n studies/cost/$$tokens/seeds/*.json.gz $(COST_RUNS)/$$tokens/seeds/ 2>/dev/null || true); \
		$(BIN)/flow-dpo compare --config studies/cost/settings.yaml --compare.tokens $$tokens \
		--compare.output_dir $(COST_RUNS)/$$tokens $(ARGS) || exit 1; \
		cp $(COST_RUNS)/$$tokens/comparison.json studies/cost/$$tokens/; \
		cp $(COST_RUNS)/$$tokens/seeds/*.json.gz studies/cost/$$tokens/seeds/; done
	$(BIN)/python -m tools.cost_differences $(addprefix studies/cost/,$(COST)) --output studies/cost/differences.json
	$(if $(FRESH),$(BIN)/python -m tools.cost_seconds $(addprefix $(COST_RUNS)/,$(COST)) --output $(COST_RUNS)/seconds.json)
	$(if $(FRESH),cp $(COST_RUNS)/seconds.json studies/cost/)
	for test in held_out/sampled held_out/greedy harder/greedy; do $(BIN)/python -m tools.cost_curve \
		studies/cost/*/comparison.json --test $$test --seconds studies/cost/seconds.json \
		--differences studies/cost/differences.json --output_dir studies/cost || exit 1; done
	$(BIN)/python -m tools.figures --write

recompute: $(DEV)  ## every figure of published studies again, from what their seeds came to (a minute, no model)
	$(BIN)/python -m tools.recompute $(ARGS)
	$(BIN)/python -m tools.cost_differences $(addprefix studies/cost/,$(COST)) --output studies/cost/differences.json --check
	$(BIN)/python -m tools.judges figures --check

check: $(DEV)  ## lint, format, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

fix: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

seed: setup  ## remake the embedded seed model (10 to 30 minutes)
	$(BIN)/python -m tools.seed_model.pretrain --output_dir flow_dpo/data/seed/model

wheel: $(DEV)
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info
