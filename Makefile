# AutoFormer pipeline. `make` or `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
SET ?=
DATASET ?= fashion-mnist
# What the preset is about; only Fashion-MNIST can be fetched.
PRESET_DATASET = $(shell sed -n 's/^dataset: *\([^ \#]*\).*/\1/p' configs/presets/$(PRESET).yaml 2>/dev/null)
IMAGES = $(if $(filter-out fashion-mnist,$(PRESET_DATASET)),$(STAMP),data)
SETTINGS = $(if $(PRESET),--preset '$(PRESET)') $(if $(SET),--set '$(SET)')
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
# A library that asks its maker's server something at every start has no place in a pipeline.
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := true

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26
	@echo
	@echo '  PRESET=smoke            a file of configs/presets/ (default: params.yaml, the demo)'
	@echo '  SET="section.key=value" overrides, separated by spaces'

.PHONY: env
env: $(STAMP) ## build the environment in .venv from the lock file

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not there; install Python 3.11, or give PYTHON=…"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(STAMP)

COMPILE = uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --quiet --upgrade

.PHONY: lock
lock: ## resolve the dependencies into requirements.lock, and those of the images, of the same versions, into docker/
	$(COMPILE) pyproject.toml --all-extras --output-file requirements.lock
	$(COMPILE) docker/uv.in --output-file docker/uv.lock
	$(COMPILE) docker/launcher.in --constraint requirements.lock --output-file docker/launcher.lock
	$(COMPILE) pyproject.toml docker/training.in --constraint requirements.lock --output-file docker/training.lock
	$(COMPILE) docker/executor.in --no-deps --constraint requirements.lock --output-file docker/executor.lock

.PHONY: data
data: $(STAMP) ## fetch the images into data/, verified; yours with DATA=path NAME=name, official archives with DATASET=name ARCHIVES=path
ifdef DATA
	$(BIN)/python -m commands.own_images --source '$(DATA)' --name '$(NAME)' $(SETTINGS)
	$(BIN)/dvc commit --quiet --force data.dvc
else ifdef ARCHIVES
	$(BIN)/python -m commands.deliver --dataset '$(DATASET)' --archives '$(ARCHIVES)' --data 'data/$(DATASET)'
	$(BIN)/dvc commit --quiet --force data.dvc
else
	$(BIN)/python -m commands.fetch --dataset $(DATASET) --data data/$(DATASET)
	$(BIN)/dvc commit --quiet data.dvc
endif

.PHONY: run
run: FLAGS = $(strip $(if $(RUNNER),--runner '$(RUNNER)') $(if $(DRY_RUN),--dry-run) $(if $(FRESH),--fresh))
run: $(if $(DATA),$(STAMP),$(IMAGES)) ## run the whole pipeline here, through KFP: the demo, or DATA=path for your images
	$(BIN)/python -m pipeline.local $(SETTINGS) $(if $(DATA),--source '$(DATA)') $(FLAGS)

.PHONY: repro
repro: $(IMAGES) ## the same steps through `dvc repro`
	$(BIN)/python -m pipeline.repro $(SETTINGS)

.PHONY: compile
compile: $(STAMP) ## compile the DAG to dist/autoformer.yaml, for a KFP cluster: CLUSTER=name, or IMAGE=… for any
	$(strip $(if $(IMAGE),AUTOFORMER_IMAGE=$(IMAGE)) $(BIN)/python -m pipeline.cluster.compile $(if $(CLUSTER),--cluster '$(CLUSTER)') \
	  $(if $(SET),--set '$(SET)') $(if $(KUBERNETES),--manifests dist/autoformer-kubernetes.yaml))

.PHONY: images
images: $(STAMP) ## build the container images, for RUNNER=docker and for a cluster (TAG=…, REGISTRY=… [PUSH=1 [CLUSTER=…]], BUILD="…")
	$(strip $(BIN)/python -m pipeline.images $(if $(TAG),--tag '$(TAG)') $(if $(REGISTRY),--registry '$(REGISTRY)') \
	  $(if $(PUSH),--push) $(if $(CLUSTER),--cluster '$(CLUSTER)') $(if $(BUILD),--build='$(BUILD)'))

.PHONY: submit
submit: $(STAMP) ## start the pipeline on a KFP server: HOST=http://… CLUSTER=name DATA=s3://…, and perhaps PRESET, SET, WAIT=1, EVERY="0 3 * * 1"
	$(strip $(if $(IMAGE),AUTOFORMER_IMAGE=$(IMAGE)) $(BIN)/python -m pipeline.cluster.submit $(if $(HOST),--host '$(HOST)') \
	  $(if $(CLUSTER),--cluster '$(CLUSTER)') $(SETTINGS) $(if $(DATA),--data '$(DATA)') \
	  $(if $(DATA_HASH),--data-hash '$(DATA_HASH)') $(if $(EXPERIMENT),--experiment '$(EXPERIMENT)') \
	  $(if $(NAMESPACE),--namespace '$(NAMESPACE)') $(if $(WAIT),--wait) $(if $(FRESH),--fresh) $(if $(EVERY),--every '$(EVERY)') \
	  $(if $(RUN),--run '$(RUN)') $(if $(TERMINATE),--terminate '$(TERMINATE)'))

.PHONY: secrets
secrets: $(STAMP) ## draw the passwords of a new cluster, into files that git ignores (docs/cluster.md)
	$(BIN)/python -m pipeline.cluster.new_secrets

.PHONY: ui
ui: $(STAMP) ## open the MLflow UI on http://127.0.0.1:5000
	$(BIN)/python -m commands.ui --port $(or $(PORT),5000)

.PHONY: compare
compare: $(STAMP) ## say what differs between two pipeline runs: make compare RUNS="a b"; without, list them
	$(BIN)/python -m commands.compare $(RUNS)

.PHONY: browser
browser: ## install Debian's Chromium, for the tests of pages; needs root
	tests/install-browser.sh

.PHONY: predict
predict: $(STAMP) ## name the class of an image: make predict IMAGE=path [MODEL=name or folder]
	$(BIN)/python -m commands.predict $(if $(MODEL),--model '$(MODEL)') '$(IMAGE)'

.PHONY: evaluate-official
evaluate-official: $(STAMP) ## measure a published subnet: CHECKPOINT=path SUBNET=name DATA=folder, and perhaps SIZE, BATCH, LIMIT, OUT
	$(BIN)/python -m commands.evaluate_official --checkpoint '$(CHECKPOINT)' --subnet '$(SUBNET)' --data '$(DATA)' \
	  $(if $(SIZE),--size $(SIZE)) $(if $(BATCH),--batch-size $(BATCH)) $(if $(LIMIT),--limit $(LIMIT)) $(if $(OUT),--out '$(OUT)')

.PHONY: test
test: data ## run the tests, on two workers of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope $(PYTEST)

.PHONY: test-containers
test-containers: data ## build the images, and run the pipeline in containers: as root on Debian, or with DOCKER_HOST
	OMP_NUM_THREADS=1 tests/containers/with-docker.sh $(BIN)/python -m pytest tests/containers/suite.py $(PYTEST)

.PHONY: bench
bench: data ## measure speed, into dist/bench; PARTS="engine loader" for some (gpu: what a GPU shows), QUICK=1 to see that it runs
	$(BIN)/python -m benchmarks.bench $(PARTS) $(if $(QUICK),--quick)

.PHONY: lint
lint: $(STAMP) ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMP) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: $(STAMP) ## make docs/configuration.md from the models that validate the configuration
	$(BIN)/python -m docs.configuration

.PHONY: docs-check
docs-check: $(STAMP) ## check links, commands, keys, paths and quoted messages of the documents
	$(BIN)/python -m docs.check

.PHONY: clean
clean: ## remove what runs have left: runs/, work/, artifacts/, dist/; keeps data, registry and environment
	rm -rf runs work artifacts dist dvc_plots
