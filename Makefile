# make demo    set everything up, then run the main job on real input
# make test    set everything up, then run the tests
# make help    the rest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PHOTOS ?=
DATA ?=
MODEL ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-portable test-cluster cluster-tools wheel lint format lock lock-cpu docs bench-imaging bench-forward bench-portable bench-gpu bench-batch bench-resume bench-listing bench-serve bench-overload bench-closed-loop bench-beside-batch bench-many-models bench-many-shards bench-hostile-packages same-predictions fuzz bench-train bench-learning bench-compression bench-video chaos chaos-train chaos-serve chaos-aliases chaos-cluster hosts show-exposure clean

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.ready  ## Make the virtual environment from the lock.

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Eagleray needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## Train on handwritten digits and classify a folder of them, good and broken.
	@$(BIN)/eagleray demo

test: setup  ## Run the tests: those with Ray wait a lot, so two files of them run side by side.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=20 --numprocesses 3 --dist worksteal -m "not long" tests/unit
	$(BIN)/python -m pytest --durations=30 --numprocesses 2 --dist loadfile -m "not long" tests/e2e tests/integration

test-long: setup  ## Run the tests that take long, and those that repeat others with more networks.
	$(BIN)/python -m pytest -m long tests/unit tests/integration tests/cluster

test-portable: setup  ## Run the numerical tests as machines with other CPUs would.
	$(BIN)/python -m tests.portable

test-cluster: setup  ## Check submission, monitoring and the deployments; see cluster-tools.
	$(BIN)/python -m pytest --durations=20 --numprocesses 2 --dist loadfile -m "not long" tests/cluster

cluster-tools: $(VENV)-cluster/.ready  ## Install what checks manifests and the Dockerfile in test-cluster.

$(VENV)-cluster/.ready: tests/cluster/requirements.txt
	$(PYTHON) -m venv $(VENV)-cluster
	$(VENV)-cluster/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

wheel: setup  ## Build the wheel, which clusters of `ray up` install, into dist.
	rm -f dist/*.whl
	$(BIN)/python -m hatchling build --directory dist --target wheel

lint: setup  ## Check format, style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## Format, and fix what can be fixed.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup  ## Resolve the newest versions into requirements.lock.
	$(BIN)/uv pip compile pyproject.toml --group dev --extra timm --extra transformers --extra postgresql --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --upgrade --quiet --output-file requirements.lock
	$(BIN)/uv pip compile tests/cluster/requirements.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --upgrade --quiet --output-file tests/cluster/requirements.txt

lock-cpu: setup  ## The same versions without CUDA, for the CPU image; needs PyTorch's own index.
	$(BIN)/uv pip compile pyproject.toml --group dev --extra timm --extra transformers --extra postgresql --universal --python-version 3.11 \
	  --constraint requirements.lock --torch-backend cpu \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --quiet --output-file requirements-cpu.lock

docs: setup  ## Write the pages that are generated from the code.
	$(BIN)/python -m eagleray.cli.reference docs/commands.md
	$(BIN)/python -m tests.module_list > docs/modules.md

bench-imaging: setup  ## Time and compare decode paths on a folder of photographs: PHOTOS=folder.
	$(BIN)/python -m tests.bench.imaging $(PHOTOS)

bench-forward: setup  ## Compare the engines and precisions of forward passes: PHOTOS=folder.
	$(BIN)/python -m tests.bench.forward --photos $(PHOTOS)

bench-portable: setup  ## Compare predictions between instruction sets: PHOTOS=folder.
	$(BIN)/python -m tests.bench.portable --photos $(PHOTOS)

bench-gpu: setup  ## Time the predictor from JPEG bytes to labels on a GPU: PHOTOS=folder.
	$(BIN)/python -m tests.bench.gpu --photos $(PHOTOS)

bench-batch: setup  ## Time batch jobs against Ray Data, Daft and a DataLoader: PHOTOS=folder.
	$(BIN)/python -m tests.bench.batch --photos $(PHOTOS)

bench-resume: setup  ## Time what a resume costs, and what being able to costs: PHOTOS=folder.
	$(BIN)/python -m tests.bench.resume --photos $(PHOTOS)

bench-listing: setup  ## Time listing a million keys against s3fs and Ray.
	$(BIN)/python -m tests.bench.listing

bench-learning: setup  ## What training learns, by workers and from a parent: DATA=folder.
	$(BIN)/python -m tests.bench.learning --data $(DATA)

bench-compression: setup  ## What distillation and pruning cost and bring: DATA=folder.
	$(BIN)/python -m tests.bench.compression --data $(DATA)

bench-video: setup  ## Classify a video frame by frame: PHOTOS=folder MODEL=NAME@ALIAS.
	$(BIN)/python -m tests.bench.video --photos $(PHOTOS) --model $(MODEL)

bench-serve: setup  ## Time the service against LitServe, FastAPI and Ray Serve: PHOTOS=folder.
	$(BIN)/python -m tests.bench.serve --photos $(PHOTOS)

bench-overload: setup  ## Send the service ten times the load it can serve: PHOTOS=folder.
	$(BIN)/python -m tests.bench.overload --photos $(PHOTOS) --plot overload.png

bench-closed-loop: setup  ## Query the service with 1 to 64 callers in a closed loop: PHOTOS=folder.
	$(BIN)/python -m tests.bench.closed_loop --photos $(PHOTOS)

bench-beside-batch: setup  ## Query the service beside a batch job on the same cluster: PHOTOS=folder.
	$(BIN)/python -m tests.bench.beside_batch --photos $(PHOTOS)

bench-many-models: setup  ## Query 20 models of 12 versions from 10 applications; count wrong versions.
	$(BIN)/python -m tests.bench.many_models

bench-many-shards: setup  ## Time jobs of ten and a hundred thousand shards, prediction left out.
	$(BIN)/python -m tests.bench.many_shards 10000 100000

same-predictions: setup  ## Predict the same photographs in every way, and compare: PHOTOS=folder.
	$(BIN)/python -m tests.bench.same_predictions --photos $(PHOTOS)

bench-hostile-packages: setup  ## Load hostile packages; show time, memory and the error.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.hostile_packages

bench-train: setup  ## Time training against a plain DDP script: PHOTOS=folder.
	$(BIN)/python -m tests.bench.train --photos $(PHOTOS)

fuzz: setup  ## Send the service 20,000 hostile requests and damaged images, and count the responses.
	EAGLERAY_FUZZ_EXAMPLES=500 EAGLERAY_FUZZ_MUTANTS=10000 EAGLERAY_FUZZ_FORMAT_MUTANTS=1000 \
	  $(BIN)/python -m pytest -s --timeout=3600 tests/unit/imaging/test_mutations.py tests/unit/serve/test_openapi.py tests/unit/imaging/test_hostile_images.py \
	  tests/unit/serve/test_hostile_requests.py tests/unit/serving/test_hostile_places.py

chaos: setup  ## Kill drivers, workers, nodes and storage calls, hundreds of times, and count.
	$(BIN)/python -m tests.chaos

chaos-train: setup  ## Kill workers and drivers of training runs, 40 times, and compare the curves.
	$(BIN)/python -m tests.chaos.training

chaos-serve: setup  ## Switch, roll back, break, kill and stop versions and processes under load; count failed requests.
	$(BIN)/python -m tests.chaos.serving
	$(BIN)/python -m tests.chaos.serving_faults

chaos-aliases: setup  ## Race promotions and rollbacks of one alias, and kill some, on both databases.
	$(BIN)/python -m tests.chaos.aliases

chaos-cluster: setup  ## Kill clients, heads, workers and links of a cluster of hosts; needs root.
	$(BIN)/python -m tests.chaos.cluster

hosts: setup  ## Run a cluster of hosts on this machine to try commands on; needs root.
	@$(BIN)/python -m cluster.hosts

show-exposure: setup  ## Show every socket of the service, and what each returns without a key.
	$(BIN)/python -m tests.bench.exposure

clean:  ## Remove the environment and every cache; models and results under .eagleray stay.
	rm -rf $(VENV) $(VENV)-cluster .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
