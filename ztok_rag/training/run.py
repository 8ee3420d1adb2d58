"""One training run from data files to a checkpoint: what `ztok train` calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import ZModel
from ztok_rag.errors import DataError
from ztok_rag.jsonl import OddRecords
from ztok_rag.training.batches import LENGTHS
from ztok_rag.training.corpus import find_documents
from ztok_rag.training.data import prepare_data
from ztok_rag.training.finder import FinderSettings, train_finder
from ztok_rag.training.loop import Trainer, TrainSettings
from ztok_rag.training.passages import DataFile, find_data, read_all
from ztok_rag.training.phrases import Phrases
from ztok_rag.training.questions import PassageSet
from ztok_rag.training.relevance import RelevanceSettings, train_relevance
from ztok_rag.training.rows import SHARES, Rows, RowSettings, check_kinds
from ztok_rag.training.surprisal import fit_code, weigh_passages
from ztok_rag.training.write import train_write
from ztok_rag.training.write_states import WriteSettings

logger = logging.getLogger(__name__)

FINDER = "finder"
"""Folder of the finder's training in that of a run."""

SELECTOR = "selector"
"""Folder of the selector's training in that of a run."""

PartSettings = RelevanceSettings | FinderSettings | WriteSettings

_ROOM = 0.7  # share of the longest row that a passage may fill


def parse_phases(text: str) -> list[tuple[str, ...]]:
    """Phases in order, each the kinds of rows that it mixes.

    Args:
        text: like `repeat,excerpt,cloze+answer`: commas between phases, `+` between kinds.

    Raises:
        DataError: there is none, or a kind is unknown.
    """
    phases = [
        tuple(dict.fromkeys(kind.strip() for kind in phase.split("+")))
        for phase in text.split(",")
        if phase.strip()
    ]
    unknown = [kind for phase in phases for kind in phase if kind not in SHARES]
    if unknown or not phases:
        raise DataError(
            f"cannot train phases {text!r}; give {', '.join(SHARES)}, with commas between phases "
            "and + between what is mixed."
        )
    return phases


def run_training(
    data: Sequence[str],
    output: str | Path,
    *,
    corpus: Sequence[str | Path] = (),
    base: str | None = None,
    init: str | Path | None = None,
    device: str | None = None,
    model_settings: dict[str, Any] | None = None,
    phases: Sequence[Sequence[str]] | None = None,
    rows: RowSettings | None = None,
    settings: TrainSettings | None = None,
    selector: RelevanceSettings | None = None,
    progress: bool = True,
    odd: OddRecords | None = None,
) -> Path:
    """Train, or go on with the run in `output`, and return the checkpoint's folder.

    Started by `accelerate launch`, it trains on several devices.

    Args:
        data: see `find_data`.
        output: folder of the run.
        corpus: folders of documents without questions; see `find_documents`.
        base: base LLM for a fresh checkpoint.
        init: checkpoint to start from instead of a fresh one.
        device: `cpu`, `cuda`, …; `None` is CUDA when there is one.
        model_settings: fields of `ZConfig` for a fresh checkpoint.
        phases: kinds of rows that each phase mixes; `None` is one phase of all that the data
            allow.
        rows: how rows are drawn.
        settings: of each phase.
        selector: how the selector is trained after the last phase, in a folder of its own.
        progress: show bars.
        odd: gets the odd records of the data, which are left out; `None` makes them errors.

    Raises:
        DataError: the data cannot be read or trained on.
        CheckpointError: the checkpoint cannot be loaded, or `output` holds another run.
    """
    settings, output = settings or TrainSettings(), Path(output)
    accelerator = Accelerator(cpu=device == "cpu")
    is_main = accelerator.is_main_process
    files = _read(data, corpus, odd, warns=is_main)
    if accelerator.num_processes > 1:
        device = str(accelerator.device)
    torch.manual_seed(settings.seed)
    if init is not None:
        model = ZModel.from_pretrained(init, base=base, device=device)
    else:
        model = ZModel.create(BaseLM.load(base, device=device), **(model_settings or {}))
    longest = min(LENGTHS[-1], settings.size, model.base.max_positions)
    prepared = prepare_data(
        files,
        model.base.tokenizer,
        output / "data",
        longest=int(_ROOM * longest),
        progress=progress and is_main,
    )
    asked = [] if model.selector is None else _asked(files)
    del files  # and with them all text that has no questions
    if phases is None:
        phases = [[kind for kind in SHARES if kind != "answer" or len(prepared.questions)]]
    check_kinds([kind for phase in phases for kind in phase], prepared)
    surprisal = weigh_passages(model, prepared, progress=progress and is_main)
    if init is None:
        fit_code(model, prepared, surprisal)
    drawn = Rows(
        prepared,
        surprisal,
        model.token_code,
        Phrases.of(model.base.tokenizer, model.start_token),
        model.config.slots,
        rows or RowSettings(),
    )
    for number, phase in enumerate(phases):
        trainer = Trainer(
            model,
            drawn,
            {kind: SHARES[kind] for kind in phase},
            settings,
            output / f"{number + 1}-{'+'.join(phase)}",
            accelerator=accelerator,
            number=number,
        )
        trainer.train(progress=progress)
    folder = output / "checkpoint"
    model.eval()
    if is_main:  # the others are done: the selector is small
        train_relevance(model, asked, output / SELECTOR, selector, progress=progress)
        model.save_pretrained(folder)
    return folder


def run_part(
    part: PartSettings,
    data: Sequence[str],
    output: str | Path,
    *,
    corpus: Sequence[str | Path] = (),
    base: str | None = None,
    init: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
    odd: OddRecords | None = None,
) -> Path:
    """Train one part of a checkpoint alone, or go on with the run in `output`.

    Nothing else of the checkpoint changes. Other arguments and errors as `run_training`; `init` is
    the checkpoint, by default the one shipped.

    Args:
        part: how the part is trained, which says which one it is.

    Returns:
        The folder of the checkpoint with the new part.
    """
    output = Path(output)
    files = _read(data, corpus, odd)
    model = ZModel.from_pretrained(init, base=base, device=device)
    if isinstance(part, WriteSettings):
        prepared = prepare_data(files, model.base.tokenizer, output / "data", progress=progress)
        train_write(model, prepared, output / "write", part, progress=progress)
    else:
        if isinstance(part, FinderSettings):
            count = train_finder(model, _asked(files), output / FINDER, part, progress=progress)
        else:
            count = train_relevance(
                model, _asked(files), output / SELECTOR, part, progress=progress
            )
        if not count:
            raise DataError(
                "no passage says the answer to a question, so there is nothing to train on; give "
                "--data of {context, question, answers}."
            )
    model.save_pretrained(output / "checkpoint")
    return output / "checkpoint"


def _read(
    data: Sequence[str],
    corpus: Sequence[str | Path],
    odd: OddRecords | None,
    *,
    warns: bool = True,
) -> list[DataFile]:
    """All files to train on, read; `warns` tells of odd records."""
    files = [*find_data(data), *(file for folder in corpus for file in find_documents(folder))]
    read_all(files, odd)
    if odd and odd.found and warns:
        logger.warning("warning: %s", odd.report())
    return files


def _asked(files: Sequence[DataFile]) -> list[PassageSet]:
    """The passages of each file that have questions, and its share."""
    found = [
        ([p for p in file.read().passages if p.questions], file.share)
        for file in files
        if not file.is_corpus
    ]
    return [(passages, share) for passages, share in found if passages]
