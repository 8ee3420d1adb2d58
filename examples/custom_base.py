"""Train a checkpoint for a base LLM of your own, and use it in LlamaIndex.

python examples/custom_base.py --base HuggingFaceTB/SmolLM2-360M-Instruct --output runs/mine \
    --data my_questions.jsonl --steps 1000

Without `--base`, a tiny model of random weights stands in for it, so that all steps run in
seconds; what such a model answers means nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.schema import MetadataMode
from transformers import LlamaConfig, LlamaForCausalLM

from ztok_rag import ZCompressor, ZStore, ZTokenLLM, ZTokenPostprocessor, default_embedding
from ztok_rag.codec.base import load_tokenizer, quiet_transformers
from ztok_rag.training.loop import TrainSettings
from ztok_rag.training.relevance import RelevanceSettings
from ztok_rag.training.run import run_training

PASSAGES = {
    "The lighthouse on Brannock Point was built in 1871 by Ada Merrow. Its lamp burned whale oil "
    "until 1902, when the harbour board paid for an electric arc.": {
        "In what year was the lighthouse built?": "1871",
        "Who built the lighthouse?": "Ada Merrow",
        "What did its lamp burn?": "whale oil",
    },
    "The bakery in Tolvan Street opens at five in the morning. Its owner, Piet Larsen, bakes rye "
    "bread in a wood oven.": {
        "When does the bakery open?": "at five in the morning",
        "Who owns the bakery?": "Piet Larsen",
    },
}


def tiny_base(folder: Path) -> Path:
    """A Hugging Face causal LM of random weights, with the tokenizer of the default base."""
    tokenizer = load_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_records(path: Path) -> Path:
    """The passages and their questions as training data: one JSON object a line."""
    records = [
        {"context": passage, "question": question, "answers": [answer]}
        for passage, questions in PASSAGES.items()
        for question, answer in questions.items()
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def train(base: str, data: str, output: Path, steps: int) -> Path:
    """Train a checkpoint for a base; a run that was stopped goes on where it was saved."""
    return run_training(
        [data],
        output,
        base=base,
        settings=TrainSettings(steps=steps, size=1024),  # positions of a batch
        selector=RelevanceSettings(steps=steps),  # what chooses by the question
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", help="Hugging Face id or folder of a causal LM")
    parser.add_argument("--data", help="JSON Lines of {context, question, answers}")
    parser.add_argument("--output", type=Path, help="folder of the run; default: a temporary one")
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = options.base or str(tiny_base(folder / "base"))
        data = options.data or str(write_records(folder / "questions.jsonl"))
        checkpoint = train(base, data, options.output or folder / "run", options.steps)

        # From here on as with the default model; the checkpoint knows its base.
        compressor = ZCompressor.from_pretrained(checkpoint)
        with ZStore(folder / "store") as store:
            index = VectorStoreIndex.from_documents(
                [Document(text=passage) for passage in PASSAGES], embed_model=default_embedding()
            )
            engine = index.as_query_engine(
                llm=ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=16),
                node_postprocessors=[
                    ZTokenPostprocessor(rate=4, compressor=compressor, store=store)
                ],
                similarity_top_k=1,
            )
            response = engine.query("Who built the lighthouse?")
            source = response.source_nodes[0].node.get_content(MetadataMode.NONE)
            (z,) = store.get_or_compress(compressor, [source], rate=4)
        print(f"answer: {response}")
        print(f"read from: {source}")
        print(f"as {len(z)} Z-tokens for {z.source_tokens} tokens of checkpoint {z.fingerprint}")


if __name__ == "__main__":
    main()
