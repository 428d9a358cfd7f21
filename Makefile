# TORCH is what pip is asked for. Without a GPU, a CPU build spares gigabytes, for example:
#   make quickstart TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
# VENV_FLAGS=--system-site-packages takes a torch that is already installed.
TORCH ?= torch
PYTHON ?= python3
VENV_FLAGS ?=
DATA ?=
# more arguments of training.quickstart, such as ARGS="--name clean --dev-split validation"
ARGS ?=
OUTPUT ?= runs/quickstart

.PHONY: quickstart test test-all lint format demo docs screenshot

# keeps the C library from returning memory after every step and asking for it again
quickstart: export MALLOC_MMAP_MAX_ = 0
quickstart: export MALLOC_TRIM_THRESHOLD_ = 8589934592
quickstart: export MALLOC_TOP_PAD_ = 67108864

# A fresh environment with everything, then speech -> pre-training -> fine-tuning -> transcripts.
quickstart: .venv-quickstart
	.venv-quickstart/bin/python -m training.quickstart --output $(OUTPUT) $(if $(DATA),--data $(DATA)) $(ARGS)

# A fresh environment, then the whole fast suite.
test: .venv-test
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/python -m pytest -m "not slow"

# The fast suite and what takes longer than a minute.
test-all: .venv-test
	.venv-test/bin/python -m pytest

# The models in a browser; MODEL gives text, ARGS more, such as ARGS="--codes runs/vq/model --live runs/cpc/model".
MODEL ?= $(OUTPUT)/finetuning/model
demo: .venv-demo
	.venv-demo/bin/python -m hf_wav2vec_family.demo --model $(MODEL) $(ARGS)

# The site, in site/; a warning is an error. SELF_CONTAINED=true has its readers need no network for the diagrams.
docs: .venv-docs
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict -f docs/mkdocs.yml

# The picture of the demo in the README, from a browser: CLIP is a file of speech, VQ a vq-wav2vec. Needs .[dev].
screenshot:
	$(PYTHON) tests/demo_browser.py $(MODEL) $(CLIP) docs/images/demo.png $(VQ)

lint:
	ruff check .
	ruff format --check .

format:
	ruff check --fix .
	ruff format .

.venv-demo .venv-docs:
	$(PYTHON) -m venv $(VENV_FLAGS) $@
	$@/bin/python -m pip install --quiet $(TORCH)
	$@/bin/python -m pip install --quiet --editable ".[$(patsubst .venv-%,%,$@)]"

.PHONY: .venv-quickstart .venv-test
.venv-quickstart: EXTRAS = quickstart
.venv-test: EXTRAS = dev
.venv-quickstart .venv-test:
	rm -rf $@
	$(PYTHON) -m venv $(VENV_FLAGS) $@
	$@/bin/python -m pip install --quiet $(TORCH)
	$@/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
