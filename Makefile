# AutoFormer pipeline. `make` or `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
DATASET ?= fashion-mnist
# $(call quote,NAME): a variable's value as one word of the shell, whatever is in it. $(call option,--flag,NAME): the
# flag with that word, where the variable is set; with `=`, since a value may begin with a dash. Neither expands the value:
# `value` reads it as it was typed.
quote = '$(subst ','\'',$(value $1))'
option = $(if $(value $2),$1=$(call quote,$2))
# $(call each_word,NAME): each of its words as one of the shell.
each_word = $(foreach one,$(value $1),'$(subst ','\'',$(one))')
VARIABLES := ARCHIVES BATCH BUILD CHECKPOINT CLASSES CLUSTER DATA DATASET DATA_HASH DEVICE DRY_RUN EVERY EXPERIMENT FRESH HOST \
  IMAGE INPUTS KUBERNETES LIMIT MODEL NAME NAMESPACE OUT PARTS PORT PRESET PUSH PYTEST PYTHON QUICK REGISTRY RUN RUNNER RUNS \
  SEARCH SEED SET SIZE SPACE STRIDE SUBNET SUBNETS TAG TERMINATE THREADS WAIT YES
# Not exported: make would expand the values, and lose dollar signs or stop at them.
unexport $(VARIABLES)
# A misspelt variable would be ignored, and the demo run instead. Names with _ may be of the environment.
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
STRANGE := $(foreach name,$(filter-out $(VARIABLES) BIN HOME KUBECONFIG LANG MAKEFLAGS PATH SHELL TMPDIR TZ VENV,$(GIVEN)),\
  $(if $(findstring .,$(name)),$(name)=,$(if $(findstring _,$(name)),,$(name)=)))
ifneq ($(strip $(STRANGE)),)
  $(error $(strip $(STRANGE)) is no variable of the Makefile; `make help` names them, and a key of the configuration is set by SET="key=value")
endif
SETTINGS = $(call option,--preset,PRESET) $(call option,--set,SET)
# The parameter file of the run, as a word of the shell.
PARAMS = $(if $(filter %.yaml %.yml,$(value PRESET)),$(call quote,PRESET),$(PARAMS_BY_NAME))
PARAMS_BY_NAME = $(if $(value PRESET),configs/presets/$(call quote,PRESET).yaml,params.yaml)
DATASET_OF_PARAMS = $(shell sed -n "s/^dataset: *[\"']\{0,1\}\([^ \"'\#]*\).*/\1/p" $(PARAMS) 2>/dev/null)
# Only Fashion-MNIST can be fetched; the run itself checks for other data sets. Settings are checked first.
IMAGES = $(if $(filter fashion-mnist,$(DATASET_OF_PARAMS)),settings data,$(STAMP))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# No library may send data to its makers.
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true
# $(call need,NAMES,example): end with one line that names all variables that are missing or empty, before anything is done.
lacking = $(strip $(foreach name,$1,$(if $(strip $(value $(name))),,$(name)=)))
need = $(if $(call lacking,$1),$(error $(call lacking,$1) $(if $(word 2,$(call lacking,$1)),are,is) missing; for example: $2))
wanted = $(filter $1,$(MAKECMDGOALS))

ifneq ($(call wanted,predict),)
  $(call need,IMAGE,make predict IMAGE=photo.jpg)
endif
ifneq ($(call wanted,evaluate-official),)
  OFFICIAL := make evaluate-official CHECKPOINT=supernet-tiny.pth SUBNET=autoformer-tiny DATA=data/imagenet-1k
  $(call need,CHECKPOINT SUBNET DATA,$(OFFICIAL))
endif
ifneq ($(call wanted,latency),)
  $(call need,SPACE OUT,make latency SPACE=fashion-mnist OUT=latency.json)
endif
ifneq ($(call wanted,score),)
  $(call need,SUBNETS,make score SUBNETS=my-subnets.yaml)
endif
ifneq ($(call wanted,adopt),)
  $(call need,CHECKPOINT,make adopt CHECKPOINT=supernet-tiny.pth PRESET=imagenet-tiny)
endif
ifneq ($(call wanted,compare),)
  $(if $(filter command,$(origin RUNS)),$(call need,RUNS,make compare RUNS="a b"))
  $(if $(filter command,$(origin RUN)),$(error RUN= is for make submit; the runs to compare are RUNS="a b"))
endif
ifneq ($(call wanted,first-run),)
  $(call need,CLUSTER,make first-run CLUSTER=mine)
endif
ifneq ($(call wanted,submit),)
  $(foreach name,RUN TERMINATE EVERY,$(if $(filter command,$(origin $(name))),$(call need,$(name),make submit HOST=http://127.0.0.1:8080 $(name)=…)))
endif
ifneq ($(call wanted,test-cluster),)
  CLUSTER_TEST := make test-cluster HOST=http://127.0.0.1:8080 CLUSTER=mine DATA=s3://autoformer/data/fashion-mnist
  $(call need,HOST CLUSTER DATA,$(CLUSTER_TEST))
endif
ifneq ($(call wanted,data run),)
  $(if $(filter command,$(origin DATA)),$(call need,DATA,make run DATA=photos))
endif
ifneq ($(call wanted,data),)
  $(if $(value DATA),$(call need,NAME,make data DATA=photos NAME=flowers))
  $(if $(filter command,$(origin ARCHIVES)),$(call need,ARCHIVES,make data DATASET=cifar-10 ARCHIVES=downloads))
  $(if $(and $(value ARCHIVES),$(filter-out command environment,$(firstword $(origin DATASET)))),\
    $(error DATASET= is missing; for example: make data DATASET=cifar-10 ARCHIVES=downloads))
endif

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26
	@echo
	@echo '  PRESET=smoke            a file of configs/presets/ (default: params.yaml, the demo)'
	@echo '  SET="section.key=value" overrides, separated by spaces'

.PHONY: env
env: $(STAMP) ## build the environment in .venv from the lock file

$(STAMP): requirements.lock pyproject.toml
	@command -v $(call quote,PYTHON) >/dev/null || { \
	  printf 'make: %s is not there; install Python 3.11, or give PYTHON=…\n' $(call quote,PYTHON); exit 2; }
	$(call quote,PYTHON) -m venv $(VENV)
	@echo 'relocatable = true' >> $(VENV)/pyvenv.cfg  # uv then writes scripts that work in a moved checkout, too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement docker/uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(STAMP)

COMPILE = uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --quiet --upgrade

.PHONY: lock
lock: ## resolve the dependencies into requirements.lock, and those of the images, with the same versions, into docker/
	$(COMPILE) pyproject.toml --all-extras --output-file requirements.lock
	$(COMPILE) docker/uv.in --output-file docker/uv.lock
	$(COMPILE) docker/launcher.in --constraint requirements.lock --output-file docker/launcher.lock
	$(COMPILE) pyproject.toml docker/training.in --constraint requirements.lock --output-file docker/training.lock
	$(COMPILE) docker/executor.in --no-deps --constraint requirements.lock --output-file docker/executor.lock
	$(COMPILE) tests/postgresql.in --output-file tests/postgresql.lock

.PHONY: data
data: $(STAMP) ## fetch the images into data/, verified; yours with DATA=path NAME=name, official archives with DATASET=name ARCHIVES=path
ifdef DATA
	$(BIN)/python -m commands.own_images --source=$(call quote,DATA) --name=$(call quote,NAME) $(SETTINGS)
	$(BIN)/python -m commands.record_data --force
else ifdef ARCHIVES
	$(BIN)/python -m commands.deliver --dataset=$(call quote,DATASET) --archives=$(call quote,ARCHIVES) \
	  --data=data/$(call quote,DATASET)
	$(BIN)/python -m commands.record_data --force
else
	$(BIN)/python -m commands.fetch --dataset=$(call quote,DATASET) --data=data/$(call quote,DATASET)
	$(BIN)/python -m commands.record_data
endif

.PHONY: settings
settings: $(STAMP)
	$(BIN)/python -m commands.check_settings $(SETTINGS)

.PHONY: run
run: FLAGS = $(strip $(call option,--runner,RUNNER) $(if $(value DRY_RUN),--dry-run) $(if $(value FRESH),--fresh))
run: $(if $(value DATA),$(STAMP),$(IMAGES)) ## run the whole pipeline here, through KFP: the demo, or DATA=path for your images
	$(BIN)/python -m pipeline.local $(SETTINGS) $(call option,--source,DATA) $(FLAGS)

.PHONY: adopt
adopt: $(IMAGES) ## run without training a supernet, on one that exists: CHECKPOINT=file; PRESET and SPACE name its space
	$(BIN)/python -m pipeline.local $(SETTINGS) --adopt=$(call quote,CHECKPOINT) $(call option,--space,SPACE)

.PHONY: repro
repro: $(IMAGES) ## the same steps through `dvc repro`
	$(BIN)/python -m pipeline.repro $(SETTINGS)

.PHONY: compile
compile: $(STAMP) ## compile the DAG to dist/autoformer.yaml, for a KFP cluster: CLUSTER=name, or IMAGE=… for any
	$(if $(value IMAGE),AUTOFORMER_IMAGE=$(call quote,IMAGE)) $(BIN)/python -m pipeline.cluster.compile \
	  $(call option,--cluster,CLUSTER) $(call option,--set,SET) $(if $(value KUBERNETES),--manifests dist/autoformer-kubernetes.yaml)

.PHONY: images
images: $(STAMP) ## build the container images, for RUNNER=docker and for a cluster (TAG=…, REGISTRY=… [PUSH=1 [CLUSTER=…]], BUILD="…")
	$(BIN)/python -m pipeline.images $(call option,--tag,TAG) $(call option,--registry,REGISTRY) $(if $(value PUSH),--push) \
	  $(call option,--cluster,CLUSTER) $(if $(value BUILD),--build=$(call quote,BUILD))

.PHONY: submit
submit: $(STAMP) ## start the pipeline on a KFP server: HOST=http://… CLUSTER=name DATA=s3://…; optional PRESET, SET, WAIT=1, EVERY="0 3 * * 1"
	$(if $(value IMAGE),AUTOFORMER_IMAGE=$(call quote,IMAGE)) $(BIN)/python -m pipeline.cluster.submit \
	  $(call option,--host,HOST) $(call option,--cluster,CLUSTER) $(SETTINGS) $(call option,--data,DATA) \
	  $(call option,--data-hash,DATA_HASH) $(call option,--experiment,EXPERIMENT) $(call option,--namespace,NAMESPACE) \
	  $(if $(value WAIT),--wait) $(if $(value FRESH),--fresh) $(call option,--every,EVERY) $(call option,--run,RUN) \
	  $(call option,--terminate,TERMINATE)

.PHONY: first-run
first-run: $(STAMP) ## run the smoke preset on a new platform, and open KFP's page: CLUSTER=name; it needs kubectl (docs/cluster.md)
	$(BIN)/python -m pipeline.cluster.first_run --cluster=$(call quote,CLUSTER) $(call option,--preset,PRESET)

.PHONY: secrets
secrets: $(STAMP) ## generate the passwords of a new cluster, in files that git ignores (docs/cluster.md)
	$(BIN)/python -m pipeline.cluster.new_secrets

.PHONY: ui
ui: $(STAMP) ## open the MLflow UI on http://127.0.0.1:5000
	$(BIN)/python -m commands.ui $(call option,--port,PORT)

.PHONY: compare
compare: $(STAMP) ## compare two pipeline runs: make compare RUNS="a b"; without RUNS, list them
	$(BIN)/python -m commands.compare $(call option,--named,RUNS)

.PHONY: browser
browser: ## install Debian's Chromium, for the tests of pages; needs root
	tests/install-debian.sh browser

.PHONY: postgresql
postgresql: $(STAMP) ## install Debian's PostgreSQL, and its driver into .psycopg2, for make chaos; needs root
	tests/install-debian.sh postgresql
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target .psycopg2 --only-binary :all: --require-hashes \
	  --requirement tests/postgresql.lock

.PHONY: predict
predict: $(STAMP) ## name the class of an image: make predict IMAGE=path [MODEL=name or folder]
	$(BIN)/python -m commands.predict $(call option,--model,MODEL) -- $(call quote,IMAGE)

.PHONY: evaluate-official
evaluate-official: $(STAMP) ## measure a published subnet: CHECKPOINT=path SUBNET=name DATA=folder; optional SIZE, BATCH, LIMIT, OUT
	$(BIN)/python -m commands.evaluate_official --checkpoint=$(call quote,CHECKPOINT) --subnet=$(call quote,SUBNET) \
	  --data=$(call quote,DATA) $(call option,--size,SIZE) $(call option,--batch-size,BATCH) $(call option,--limit,LIMIT) \
	  $(call option,--out,OUT)

.PHONY: score
score: $(STAMP) ## score subnets of your own, as a search did: SUBNETS=file; optional SEARCH=folder (the latest), DATA, OUT, SET
	$(BIN)/python -m commands.score --subnets=$(call quote,SUBNETS) $(call option,--search,SEARCH) \
	  $(call option,--data,DATA) $(call option,--out,OUT) $(call option,--set,SET)

.PHONY: latency
latency: $(STAMP) ## measure latencies here, for a limit in milliseconds: SPACE=name OUT=file; optional CLASSES, DEVICE, BATCH, THREADS
	$(BIN)/python -m commands.latency --space=$(call quote,SPACE) --out=$(call quote,OUT) \
	  $(call option,--classes,CLASSES) $(call option,--device,DEVICE) $(call option,--batch,BATCH) \
	  $(call option,--threads,THREADS)

.PHONY: test
test: data ## run the tests, on two workers of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope -o faulthandler_timeout=600 $(value PYTEST)

.PHONY: fuzz
fuzz: $(STAMP) ## damage files of every format at random, and read them: INPUTS=2000, SEED=… to repeat
	cd tests && PYTHONPATH=.. PYTHONWARNINGS=ignore OMP_NUM_THREADS=1 ../$(BIN)/python fuzz.py $(call option,--inputs,INPUTS) $(call option,--seed,SEED)

.PHONY: chaos
chaos: $(STAMP) ## kill steps at every write, take disk, stores and clock away: SEED=… to repeat, STRIDE=6 for every 6th write only
	SEED=$(call quote,SEED) STRIDE=$(call quote,STRIDE) OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest --verbosity=1 --disable-warnings -rs -n 3 --dist loadscope -o faulthandler_timeout=1800 \
	  tests/chaos/services.py tests/chaos/memory.py tests/chaos/suite.py tests/test_full_disk.py $(value PYTEST)

.PHONY: test-containers
test-containers: data ## build the images, and run the pipeline in containers: as root on Debian, or with DOCKER_HOST
	OMP_NUM_THREADS=1 tests/containers/with-docker.sh $(BIN)/python -m pytest tests/containers/suite.py $(value PYTEST)

.PHONY: test-cluster
test-cluster: $(STAMP) ## check a KFP server with the smoke preset: HOST=… CLUSTER=… DATA=…; optional KUBECONFIG, YES=1 beside other runs
	HOST=$(call quote,HOST) CLUSTER=$(call quote,CLUSTER) DATA=$(call quote,DATA) YES=$(call quote,YES) \
	  $(BIN)/python -m pytest -rs tests/cluster/suite.py $(value PYTEST)

.PHONY: bench
bench: data ## measure speed, into dist/bench: PARTS="engine loader" for some parts (gpu checks a GPU), QUICK=1 for a trial
	$(BIN)/python -m benchmarks.bench $(call each_word,PARTS) $(if $(value QUICK),--quick)

.PHONY: lint
lint: $(STAMP) ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy

.PHONY: format
format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: $(STAMP) ## write docs/configuration.md from the models that validate the configuration
	$(BIN)/python -m docs.configuration

.PHONY: docs-check
docs-check: $(STAMP) ## check links, commands, keys, paths and quoted messages of the documents
	$(BIN)/python -m docs.check

.PHONY: clean
clean: ## remove the output of runs: runs/, work/, artifacts/, dist/; keep data, registry and environment
	rm -rf runs work artifacts dist dvc_plots
