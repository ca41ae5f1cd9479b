# make demo         install, train on the demo corpus, evaluate, search a recording     (minutes, CPU)
# make test         install, lint, type-check, test
# make real-speech  train the laptop recipes, evaluate on recordings of speakers never trained on  (CPU, over an hour)
# make clean        delete the environment and what was built; packs and outputs stay

PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13,$(if $(shell command -v python$(version)),python$(version))) python3)
BIN := .venv/bin
EXTRAS := phonemes,report,modal,tune,sentence-transformers,synthesis,benchmark,dev

.PHONY: demo test real-speech install lint clean
.DEFAULT_GOAL := demo

demo: install
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no scripts/train.py --resume

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

real-speech: install
	$(BIN)/python -m benchmarks.real_speech.laptop
	$(BIN)/python -m benchmarks.real_speech --model outputs/laptop_lora --training-corpus packs/laptop
	$(BIN)/python -m benchmarks.real_speech --model outputs/laptop_lora --training-corpus packs/laptop --test-set ktuberling

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@echo "== installing into .venv with $(PYTHON) (the first time downloads about 400 MB)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "needs Python 3.11, 3.12 or 3.13; found $$($(PYTHON) --version). Set PYTHON=python3.12, say."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
