"""Score a checkpoint on question answering and reconstruction, as `ztok eval` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ztok_rag.codec.prompts import QA_TEMPLATE, REPEAT_PROMPT
from ztok_rag.errors import ZtokError, check_rate
from ztok_rag.evaluation.arms import Z_TOKEN_ARMS, Arm, make_arms
from ztok_rag.evaluation.datasets import QA, RECONSTRUCTION, WRITING, Dataset
from ztok_rag.evaluation.log import PredictionLog, digest, weights_digest
from ztok_rag.evaluation.metrics import (
    bleu4,
    characters_lost,
    require_bench,
    rouge_l,
    verbatim_match,
)
from ztok_rag.evaluation.prompts import cut_end
from ztok_rag.evaluation.questions import Question, make_question, sample
from ztok_rag.evaluation.results import write_results
from ztok_rag.evaluation.rows import Row
from ztok_rag.evaluation.run import evaluate, reconstruct, reconstruction_arms
from ztok_rag.evaluation.summary import paired_share, summarize
from ztok_rag.files import show

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


logger = logging.getLogger(__name__)

_SHORTEST_CUT = 16


@dataclass(frozen=True)
class EvalSettings:
    """How a checkpoint is scored.

    Attributes:
        rates: source tokens per Z-token.
        arms: names of the arms that answer questions.
        limit: most records per file, drawn at random; `None` is all.
        seed: of the draw and of the intervals.
        batch_size: most prompts, or texts, in a batch.
        max_new_tokens: longest answer, in tokens.
        max_text_tokens: longest text to reconstruct; longer ones are cut to it.

    Raises:
        ZtokError: a number is out of range.
    """

    rates: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    arms: tuple[str, ...] = ("none", "text-reader", "ztok", "ztok-focus")
    limit: int | None = None
    seed: int = 0
    batch_size: int = 8
    max_new_tokens: int = 32
    max_text_tokens: int = 256

    def __post_init__(self) -> None:
        from ztok_rag.codec.compressor import MAX_RATE

        if not self.rates:
            raise ZtokError("there is no rate to score; give at least one in --rates.")
        for rate in self.rates:
            check_rate(rate, MAX_RATE)
        limits = {
            "limit": 1,
            "seed": 0,
            "batch_size": 1,
            "max_new_tokens": 1,
            "max_text_tokens": _SHORTEST_CUT,
        }
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and value < least:
                option = name.replace("_", "-")
                raise ZtokError(f"--{option} must be at least {least}, not {value}.")


def evaluate_checkpoint(
    compressor: ZCompressor,
    datasets: Sequence[Dataset],
    output: Path,
    settings: EvalSettings,
    *,
    checkpoint: str = "default",
    device: str | None = None,
    progress: bool = True,
) -> tuple[list[Row], str]:
    """Score a checkpoint and write `results.json` and the predictions into `output`.

    The context of a question is its own (gold) paragraph. An interrupted evaluation in `output`
    is resumed. A finished one is extended by new arms, rates and records.

    Args:
        checkpoint: name of the checkpoint in the results.
        device: name of the device in the results.
        progress: whether to show progress bars.

    Returns:
        The rows, and a note that describes the data.

    Raises:
        DataError: `output` holds an evaluation with other settings or data, or an arm is unknown.
        CheckpointError: writing is to be scored, and the checkpoint has no write head.
        ZtokError: there are texts to reconstruct, and the extra `bench` is not installed.
    """
    asked = {data.name: _questions(data, settings) for data in datasets if QA in data.tasks}
    repeated = {
        data.name: _reconstructions(data, settings, compressor.tokenizer)
        for data in datasets
        if RECONSTRUCTION in data.tasks
    }
    written = {
        f"{data.name} {WRITING}": _texts(data, settings, compressor.tokenizer)
        for data in datasets
        if WRITING in data.tasks
    }
    if repeated:
        require_bench()
    if written:
        _ = compressor.model.chains  # says so at once if there is no write head
    arms = make_arms(settings.arms, settings.rates) if asked else []
    log = PredictionLog(output, _log_settings(compressor, datasets, settings))
    try:
        rows = _score_answers(asked, arms, compressor, log, settings, progress)
        rows += _score_reconstructions(repeated, compressor, log, settings, progress)
        rows += _score_writing(written, compressor, settings, progress)
    finally:
        log.close()
    note = " ".join(
        _describe(
            data,
            asked.get(data.name),
            repeated.get(data.name),
            written.get(f"{data.name} {WRITING}"),
            settings,
        )
        for data in datasets
    )
    write_results(
        output,
        rows,
        seed=settings.seed,
        checkpoint=checkpoint,
        device=device or str(compressor.model.base.device),
        fingerprint=compressor.fingerprint,
        benchmark="eval",
        note=note,
    )
    return rows, note


def _questions(data: Dataset, settings: EvalSettings) -> list[Question]:
    chosen = sample(list(enumerate(data.records)), settings.limit, settings.seed)
    return [
        make_question(data.name, number, record, settings.max_new_tokens)
        for number, record in chosen
    ]


def _reconstructions(data: Dataset, settings: EvalSettings, tokenizer: Any) -> list[Question]:
    """The distinct texts of the drawn records, each as a question whose answer is the text."""
    first: dict[str, int] = {}
    for number, text in enumerate(data.texts):
        first.setdefault(text, number)
    chosen = dict.fromkeys(sample(data.texts, settings.limit, settings.seed))
    return [
        _reconstruction(f"{data.name} {RECONSTRUCTION}", first[text], text, settings, tokenizer)
        for text in chosen
    ]


def _texts(data: Dataset, settings: EvalSettings, tokenizer: Any) -> list[str]:
    """The distinct texts of the drawn records, cut as those that are reconstructed."""
    chosen = dict.fromkeys(sample(data.texts, settings.limit, settings.seed))
    return [cut_end(text.strip(), settings.max_text_tokens, tokenizer)[0] for text in chosen]


def _score_writing(
    written: Mapping[str, Sequence[str]],
    compressor: ZCompressor,
    settings: EvalSettings,
    progress: bool,
) -> list[Row]:
    if not written:
        return []
    from ztok_rag.evaluation.writing import score_writing

    return score_writing(compressor, written, seed=settings.seed, progress=progress)


def _reconstruction(
    task: str, number: int, text: str, settings: EvalSettings, tokenizer: Any
) -> Question:
    whole = text.strip()
    kept, _ = cut_end(whole, settings.max_text_tokens, tokenizer)
    return Question(
        id=str(number),
        task=task,
        before="",
        after=REPEAT_PROMPT,
        text=whole,
        answers=(kept,),
        max_new_tokens=settings.max_text_tokens,
        score=lambda prediction: score_reconstruction(prediction, kept),
    )


def score_reconstruction(prediction: str, text: str) -> dict[str, float]:
    """Scores of a reconstructed text, 0 to 1. Of `characters_lost` 0 is best, of the others 1."""
    return {
        "bleu4": bleu4(prediction, [text]),
        "rouge_l": rouge_l(prediction, [text]),
        "exact_match": verbatim_match(prediction, [text]),
        "characters_lost": characters_lost(prediction, [text]),
    }


def _log_settings(
    compressor: ZCompressor, datasets: Sequence[Dataset], settings: EvalSettings
) -> dict[str, Any]:
    """Everything that decides a prediction or its id."""
    return {
        "benchmark": "eval",
        "fingerprint": compressor.fingerprint,
        "weights": weights_digest(compressor),
        "base": compressor.model.base.name,
        "data": {data.name: digest(data.records) for data in datasets},
        "templates": digest([QA_TEMPLATE, REPEAT_PROMPT]),
        "max_new_tokens": settings.max_new_tokens,
        "max_text_tokens": settings.max_text_tokens,
        "seed": settings.seed,
    }


def _score_answers(
    asked: Mapping[str, Sequence[Question]],
    arms: Sequence[Arm],
    compressor: ZCompressor,
    log: PredictionLog,
    settings: EvalSettings,
    progress: bool,
) -> list[Row]:
    """Answer the questions by all arms, each from its gold paragraph, and score the answers."""
    total = len(arms) * sum(map(len, asked.values()))
    with tqdm(total=total, unit="answer", smoothing=0.1, disable=not (progress and total)) as bar:
        for questions in asked.values():
            evaluate(
                questions,
                arms,
                compressor=compressor,
                retrieve=_gold_paragraphs,
                log=log,
                batch_size=settings.batch_size,
                seed=settings.seed,
                bar=bar,
            )
    rows: list[Row] = []
    for name, questions in asked.items():
        rows += summarize(QA, {name: questions}, arms, log, k=1, seed=settings.seed)
        rows += _shares(questions, arms, log, settings.seed)
    return rows


def _gold_paragraphs(questions: Sequence[Question]) -> list[list[str]]:
    return [[question.gold] if question.gold else [] for question in questions]


def _shares(
    questions: Sequence[Question], arms: Sequence[Arm], log: PredictionLog, seed: int
) -> list[Row]:
    """F1 of Z-tokens in per cent of the text reader's, by rate; empty without a text reader."""
    text_reader = next((arm for arm in arms if arm.name == "text-reader"), None)
    if text_reader is None:
        return []
    shares = [
        paired_share(questions, arm, text_reader, log, "f1", benchmark=QA, k=1, seed=seed)
        for arm in arms
        if arm.name in Z_TOKEN_ARMS
    ]
    if None in shares:
        logger.warning(
            "warning: share_of_text_reader is left out for %s: the text reader scores 0 there.",
            questions[0].task,
        )
    return [row for row in shares if row is not None]


def _score_reconstructions(
    repeated: Mapping[str, Sequence[Question]],
    compressor: ZCompressor,
    log: PredictionLog,
    settings: EvalSettings,
    progress: bool,
) -> list[Row]:
    """Reconstruct the texts at all rates, by decompression and by the reader, and score them."""
    rates = list(dict.fromkeys(map(float, settings.rates)))
    arms = reconstruction_arms(rates)
    keys = [(text, arm) for texts in repeated.values() for text in texts for arm in arms]
    done = sum(log.get(text, arm) is not None for text, arm in keys)
    with tqdm(
        total=len(keys),
        initial=done,
        unit="text",
        smoothing=0.1,
        disable=not (progress and keys),
    ) as bar:
        for texts in repeated.values():
            reconstruct(
                texts,
                rates,
                compressor=compressor,
                log=log,
                batch_size=settings.batch_size,
                bar=bar,
            )
    rows: list[Row] = []
    for texts in repeated.values():
        tasks = {texts[0].task: texts}
        rows += summarize(RECONSTRUCTION, tasks, arms, log, k=1, seed=settings.seed)
    return rows


def _describe(
    data: Dataset,
    questions: Sequence[Question] | None,
    texts: Sequence[Question] | None,
    written: Sequence[str] | None,
    settings: EvalSettings,
) -> str:
    """A sentence on what was scored of a file."""
    parts = []
    if questions is not None:
        parts.append(
            f"{len(questions)} of {len(data.records)} questions, each with its gold paragraph"
        )
    if texts is not None:
        cut = sum(text.answers[0] != text.text for text in texts)
        parts.append(
            f"{len(texts)} of {len(set(data.texts))} distinct texts reconstructed, {cut} of them "
            f"cut to their first {settings.max_text_tokens} tokens, at the end of a word"
        )
    if written is not None:
        parts.append(
            f"{len(written)} texts written, of at most {settings.max_text_tokens} tokens each"
        )
    return f"{show(data.path)}: {'; '.join(parts)}."
