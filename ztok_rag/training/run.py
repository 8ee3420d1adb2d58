"""One training run from data files to a checkpoint: what `ztok train` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ztok_rag.base import BaseLM
from ztok_rag.errors import DataError
from ztok_rag.model import ZModel
from ztok_rag.prompts import training_templates
from ztok_rag.reader import ZReader
from ztok_rag.training.corpus import ask_questions, cut_passages, read_documents
from ztok_rag.training.data import BatchSettings, PackedBatches, Passage, read_passages
from ztok_rag.training.objective import TrainSettings
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
    folder = Path(output) / "checkpoint"
    if train_relevance(model, passages, relevance, progress=progress):
        model.save_pretrained(folder)
    return folder


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
