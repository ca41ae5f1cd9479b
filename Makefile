# make demo         install, search with the model that came along, train on the demo corpus, evaluate  (minutes, CPU)
# make test         install, lint, type-check, test
# make test-all     the same, and the few tests of half a minute each
# make test-floors  test against the lowest versions that pyproject.toml names; torch alone is the tested version, since
#                   its floor comes as a CUDA build of gigabytes where pip knows of no other
# make real-speech  train the laptop recipes, evaluate on recordings of speakers never trained on  (CPU, over an hour)
# make clean        delete the environments and what was built; packs and outputs stay

PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13,$(if $(shell command -v python$(version)),python$(version))) python3)
BIN := .venv/bin
EXTRAS := phonemes,report,modal,tune,sentence-transformers,synthesis,benchmark,dev

# What a release of another library could break: everything but the commands, benchmarks and runs of several processes.
FLOOR_TESTS := $(addprefix tests/,house audio corpora packs text losses retrieval models/test_retrieval_model.py \
	training/test_trainer.py training/test_run.py)

.PHONY: demo test test-all test-floors real-speech install style lint clean
.DEFAULT_GOAL := demo

demo: install
	-$(BIN)/qtr search builders/term_audio/glossary.json builders/term_audio/demo/test/kokoro-am_michael/0077.ogg
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no scripts/train.py --resume

# mypy is one of the tests, so that it has a core of two and not the machine.
test: style
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not long'

test-all: style
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-floors: .venv-floors/installed
	.venv-floors/bin/python -m pytest -n 2 --dist loadfile $(FLOOR_TESTS)

.venv-floors/installed: pyproject.toml constraints.txt scripts/floors.py
	$(PYTHON) -m venv .venv-floors
	$(PYTHON) scripts/floors.py > .venv-floors/floors.txt
	.venv-floors/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-floors/floors.txt --editable '.[$(EXTRAS)]'
	@touch $@

real-speech: install
	$(BIN)/python -m benchmarks.real_speech.laptop
	$(BIN)/python -m benchmarks.real_speech --model outputs/laptop_lora --training-corpus packs/laptop
	$(BIN)/python -m benchmarks.real_speech --model outputs/laptop_lora --training-corpus packs/laptop --test-set ktuberling

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
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
	rm -rf .venv .venv-floors build dist *.egg-info
