"""Tiny random base LLMs of several layouts, and a little text to train them on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import ZModel
from ztok_rag.training.data import prepare_data
from ztok_rag.training.passages import find_data
from ztok_rag.training.phrases import Phrases
from ztok_rag.training.rows import Rows, RowSettings
from ztok_rag.training.stepping import StepTrainer
from ztok_rag.training.surprisal import fit_code, weigh_passages

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
LAYOUTS = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
}
SETTINGS = {"rank": 8, "slots": 8, "packer_width": 32, "pointer_width": 16}

SYLLABLES = ["bar", "cor", "del", "fen", "gri", "hol", "jar", "kve", "lud", "mon", "nor", "pel"]


def passages(count: int = 80) -> list[tuple[str, str, str]]:
    """Texts, each with a question and its answer; every name occurs twice in its text alone."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        one, other, place = (
            first + "".join(rng.choice(SYLLABLES, 3)) + SYLLABLES[number % 12]
            for first in ("A", "B", "C")
        )
        text = (
            f"The old mill of {place} was built in {1800 + number} by {one}, who came from the "
            "coast and had learned the trade of a carpenter from an uncle. In the winter the "
            f"river froze, and the wheel stood still for weeks. When {one} died, the mill went to "
            f"{other}, and people say that {other} never ground a single sack of flour in all "
            f"those years in {place}, but kept bees, wrote letters, and let the wheel turn for "
            "its own sake."
        )
        found.append((text, f"Who built the mill of {place}?", one))
    return found


def write_questions(path: Path, count: int = 80) -> Path:
    """`passages` as a file of questions."""
    rows = [{"context": c, "question": q, "answers": [a]} for c, q, a in passages(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_tokenizer() -> Any:
    """Byte-level BPE of the words in `passages`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1900,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(row) for row in passages()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tiny_base(layout: str = "llama", vocabulary: int = 2000) -> BaseLM:
    """A random base LLM; the same at every call."""
    torch.manual_seed(3)
    config = LAYOUTS[layout](vocab_size=vocabulary, **SHAPE)
    model = AutoModelForCausalLM.from_config(config)
    # As large as trained embeddings are beside each other.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return BaseLM(f"tiny-{layout}", model, tiny_tokenizer())


def tiny_model(layout: str = "llama", vocabulary: int = 2000, **settings: Any) -> ZModel:
    """An untrained model on a tiny base."""
    return ZModel.create(tiny_base(layout, vocabulary), **{**SETTINGS, **settings})


def make_rows(
    model: ZModel, questions: Path, folder: Path, settings: RowSettings | None = None
) -> Rows:
    """Rows of a file of questions for a fresh model."""
    tokenizer = model.base.tokenizer
    data = prepare_data(find_data([str(questions)]), tokenizer, folder, progress=False)
    surprisal = weigh_passages(model, data, progress=False)
    fit_code(model, data, surprisal)
    phrases = Phrases.of(tokenizer, model.start_token)
    slots = model.config.slots
    return Rows(data, surprisal, model.token_code, phrases, slots, settings or RowSettings())


@contextmanager
def interrupted(trainer: type[StepTrainer[Any]], after: int) -> Iterator[None]:
    """A run in the body is interrupted after so many steps."""
    step = trainer.train_step

    def stop(running: StepTrainer[Any]) -> dict[str, Any]:
        if running.step == after:
            raise KeyboardInterrupt
        return step(running)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "train_step", stop)
        yield
