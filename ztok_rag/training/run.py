"""One training run from data files to a checkpoint: what `ztok train` calls."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.prompts import training_templates
from ztok_rag.codec.reader import ZReader
from ztok_rag.errors import DataError
from ztok_rag.training.batches import BatchSettings, PackedBatches
from ztok_rag.training.corpus import ask_questions, cut_passages, read_documents
from ztok_rag.training.focused import FocusedBatches, FocusedSettings
from ztok_rag.training.objective import TrainSettings
from ztok_rag.training.passages import Passage, read_passages
from ztok_rag.training.relevance import RelevanceSettings, train_relevance
from ztok_rag.training.trainer import Trainer


def load_data(specs: Sequence[str], seed: int) -> list[Passage]:
    """Read training files.

    Args:
        specs: paths; `PATH:SHARE` takes that share of a path's passages, chosen by `seed`.

    Raises:
        DataError: a path is missing, a record malformed, or a share not in (0, 1].
    """
    passages: list[Passage] = []
    for spec in specs:
        path, _, share = spec.rpartition(":")
        if not path or Path(spec).exists():
            path, share = spec, "1"
        try:
            fraction = float(share)
        except ValueError:
            fraction = -1.0
        if not 0 < fraction <= 1:
            raise DataError(f"{spec}: the share after the colon must be above 0 and at most 1.")
        found = read_passages(path)
        count = max(1, round(len(found) * fraction)) if found else 0
        chosen = np.random.default_rng([seed, 3]).permutation(len(found))[:count]
        passages += [found[i] for i in sorted(chosen.tolist())]
    return passages


def run_training(
    data: Sequence[str],
    output: str | Path,
    *,
    corpus: Sequence[str | Path] = (),
    base: str | None = None,
    init: str | Path | None = None,
    device: str | None = None,
    model_settings: dict[str, Any] | None = None,
    batch_settings: BatchSettings | None = None,
    settings: TrainSettings | None = None,
    relevance: RelevanceSettings | None = None,
    reader_steps: int = 0,
    focused: FocusedSettings | None = None,
    snapshot_every: int | None = None,
    progress: bool = True,
) -> Path:
    """Train, or go on with the run in `output`, and return the checkpoint's folder.

    Args:
        data: see `load_data`.
        output: folder of the run.
        corpus: folders of documents without questions; see `adaptation_passages`.
        base: base LLM for a fresh checkpoint.
        init: checkpoint to start from instead of a fresh one.
        device: `cpu`, `cuda`, …; `None` is CUDA when there is one.
        model_settings: fields of `ZConfig` for a fresh checkpoint.
        batch_settings: see `BatchSettings`; templates default to `training_templates()`.
        settings: see `TrainSettings`.
        relevance: how the relevance model is trained after the last step.
        reader_steps: steps after that of the reader alone, on contexts composed for questions.
        focused: how they are composed.
        snapshot_every: see `Trainer`.
        progress: show a bar.
    """
    settings = settings or TrainSettings()
    batch_settings = batch_settings or BatchSettings(templates=training_templates())
    torch.manual_seed(settings.seed)
    passages = load_data(data, settings.seed)
    documents = [text for folder in corpus for text in read_documents(folder)]
    if init is not None:
        model = ZModel.from_pretrained(init, base=base, device=device)
    else:
        model = ZModel.create(BaseLM.load(base, device=device), **(model_settings or {}))
    if documents:
        passages += adaptation_passages(
            ZReader(model), documents, Path(output), batch_settings, progress=progress
        )
    if settings.text_steps:
        model.add_text_adapter()
    batches = PackedBatches(passages, model.base.tokenizer, batch_settings, settings.seed)
    trainer = Trainer(
        model, batches, settings, output, fresh=init is None, snapshot_every=snapshot_every
    )
    trainer.resume()
    trainer.train(progress=progress)
    output = Path(output)
    relevance = relevance or RelevanceSettings()
    train_relevance_once(model, passages, relevance, output, progress=progress)
    if reader_steps:
        composed = FocusedBatches(
            model, passages, batch_settings, settings.seed, focused, progress=progress
        )
        alone = dataclasses.replace(
            settings, steps=reader_steps, text_steps=0, ramp_steps=0, reader_only=True
        )
        trainer = Trainer(
            model, composed, alone, output / "reader", fresh=False, snapshot_every=snapshot_every
        )
        trainer.resume()
        trainer.train(progress=progress)
    folder = output / "checkpoint"
    model.save_pretrained(folder)
    return folder


def train_relevance_once(
    model: ZModel,
    passages: Sequence[Passage],
    settings: RelevanceSettings,
    output: Path,
    *,
    progress: bool = True,
) -> None:
    """Train the relevance model, or load what an earlier call in `output` has trained."""
    path = output / "relevance.safetensors"
    described = json.dumps([model.fingerprint, len(passages), dataclasses.asdict(settings)])
    if path.exists():
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            known = file.metadata()
        if known == {"settings": described}:
            model.relevance.load_state_dict(load_file(path))
            return
    log = output / "relevance.jsonl"
    if train_relevance(model, passages, settings, log=log, progress=progress):
        temporary = path.with_suffix(".tmp")
        save_file(model.relevance.state_dict(), temporary, {"settings": described})
        temporary.replace(path)


def adaptation_passages(
    reader: ZReader,
    documents: Sequence[str],
    output: Path,
    settings: BatchSettings,
    *,
    progress: bool = True,
) -> list[Passage]:
    """What to train on where there are documents and nothing else.

    Each document is cut twice: into windows, about which the base LLM asks questions and answers
    them (kept in `output/questions.jsonl`), and into longer pieces, of which a window is
    compressed, repeated and continued.

    Args:
        reader: of the checkpoint to train from.
        documents: texts of any length.
        output: folder of the run.
        settings: for the sizes of windows and continuations.
        progress: show a bar.
    """
    window = settings.window
    windows = [piece for text in documents for piece in cut_passages(text, reader, window - 8)]
    asked = ask_questions(reader, windows, output / "questions.jsonl", progress=progress)
    longer = window + settings.continuation_tokens
    pieces = [piece for text in documents for piece in cut_passages(text, reader, longer)]
    return [p for p in asked if p.questions] + [Passage(piece) for piece in pieces]
