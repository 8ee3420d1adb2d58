"""What each part of reading Z-tokens gives: the same questions, with one part changed at a time.

    python benchmarks/ablations.py --data FILE.jsonl --output DIR

Each record of the file has `context`, `question` and `answers`; answers are read from the context
at each rate. Nothing is trained for a variant: each is the shipped checkpoint, read otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from common import (
    Parser,
    add_model_options,
    load_compressor,
    numbers,
    positive,
    run_script,
)
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.copying import CopyCosts
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.evaluation import (
    QUESTION_FIELDS,
    Arm,
    PredictionLog,
    Question,
    check_question,
    digest,
    make_question,
    paired_difference,
    sample,
    summarize,
)
from ztok_rag.evaluation.datasets import short_names
from ztok_rag.evaluation.log import weights_digest
from ztok_rag.evaluation.prompts import Compressed, Prompt
from ztok_rag.evaluation.results import write_results
from ztok_rag.evaluation.run import prediction_record
from ztok_rag.files import show
from ztok_rag.jsonl import read_jsonl
from ztok_rag.selection.look_twice import LookTwice
from ztok_rag.selection.reading import read_once

DEFAULT = "default"
TEXT = "text"
_BATCH = 8

Read = Callable[[CompressedText, float, int], ZSequence]


@dataclass(frozen=True)
class Variant:
    """One way of reading.

    Attributes:
        what: what is changed, in a few words.
        read: gives the Z-tokens of a text at a rate, for a number of slots.
        arguments: further arguments of `ZReader.generate`.
        look: how to look twice; `None` looks once.
        scores_sentences: the second look knows which sentences are about the question.
        is_focused: the question chooses what is read.
        around: a context in which answers are read.
    """

    what: str
    read: Read = CompressedText.at
    arguments: Mapping[str, Any] = field(default_factory=dict)
    look: LookTwice | None = None
    scores_sentences: bool = False
    is_focused: bool = False
    around: Callable[[ZCompressor], AbstractContextManager[Any]] = lambda _: nullcontext()


class _Even(CompressedText):
    """A text whose tokens all weigh the same."""

    @property
    def weights(self) -> NDArray[np.float64]:
        return np.ones(len(self))


def _fields(text: CompressedText) -> dict[str, Any]:
    return {f.name: getattr(text, f.name) for f in dataclasses.fields(text)}


def _even(text: CompressedText, rate: float, slots: int) -> ZSequence:
    return _Even(**_fields(text)).at(rate, slots)


def _half_slots(text: CompressedText, rate: float, slots: int) -> ZSequence:
    return text.at(rate, slots // 2)


@contextmanager
def _without_mlp(compressor: ZCompressor) -> Iterator[None]:
    """Each Z-token is the mean of its tokens' embeddings."""
    hook = compressor.model.packer.outward.register_forward_hook(
        lambda module, inputs, output: torch.zeros_like(output)
    )
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _without(part: str, compressor: ZCompressor) -> Iterator[None]:
    """The model has no such part."""
    model = compressor.model
    kept = getattr(model, part)
    setattr(model, part, None)
    try:
        yield
    finally:
        setattr(model, part, kept)


@contextmanager
def _without_finder(compressor: ZCompressor) -> Iterator[None]:
    """The model has no finder."""
    model = compressor.model
    kept = model.finder
    model.set_finder(None)
    try:
        yield
    finally:
        model.set_finder(kept)


@contextmanager
def _pointer_alone(compressor: ZCompressor) -> Iterator[None]:
    """The model has neither finder nor selector."""
    with _without_finder(compressor), _WITHOUT_SELECTOR(compressor):
        yield


_WITHOUT_POINTER, _WITHOUT_SELECTOR = (partial(_without, part) for part in ("pointer", "selector"))

_TWICE = LookTwice(from_tokens=1)

VARIANTS = {
    DEFAULT: Variant("one look, all tokens held"),
    "even-spans": Variant("spans of equal length, not of equal weight", read=_even),
    "half-slots": Variant("at most 8 tokens in a Z-token, not 16", read=_half_slots),
    "no-mlp": Variant("a Z-token is the mean of its embeddings", around=_without_mlp),
    "question-last": Variant(
        "the question only after the Z-tokens", arguments={"ask_first": False}
    ),
    "no-copying": Variant("answers are not drawn to the codes", arguments={"copy": False}),
    "weak-copying": Variant(
        "copying costs 1, 1 and 2 nats, not 5, 6 and 10",
        arguments={"copy": CopyCosts(1.0, 1.0, 2.0)},
    ),
    "strong-copying": Variant(
        "copying costs 10, 12 and 20 nats", arguments={"copy": CopyCosts(10.0, 12.0, 20.0)}
    ),
    "copying-anywhere": Variant(
        "nothing tells copying which places are likely",
        arguments={"copy": CopyCosts(place=0.0, end=0.0)},
    ),
    "copying-no-pointer": Variant(
        "the pointer does not tell copying which places are likely", around=_WITHOUT_POINTER
    ),
    "two-looks": Variant(
        "two looks: pointer, finder, relevance model and sentences choose what is read",
        look=_TWICE,
        scores_sentences=True,
    ),
    "two-looks-no-finder": Variant(
        "two looks, without the finder",
        look=_TWICE,
        scores_sentences=True,
        around=_without_finder,
    ),
    "two-looks-no-relevance": Variant(
        "two looks, without the relevance model",
        look=_TWICE,
        scores_sentences=True,
        around=_WITHOUT_SELECTOR,
    ),
    "two-looks-no-sentences": Variant("two looks, without the sentences", look=_TWICE),
    "two-looks-pointer": Variant(
        "two looks: the pointer alone chooses", look=_TWICE, around=_pointer_alone
    ),
    "no-first-look": Variant(
        "finder, relevance model and sentences choose, without a first look",
        look=LookTwice(first_rate=math.inf, from_tokens=1),
        scores_sentences=True,
    ),
    "focused": Variant(
        "the question chooses: finder, relevance model and sentences", is_focused=True
    ),
    "focused-no-finder": Variant(
        "the question chooses: relevance model and sentences",
        is_focused=True,
        around=_without_finder,
    ),
}
"""Ways of reading, by name; all but the first change one part of it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = Parser(description="Read with one part changed at a time.")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSON Lines")
    parser.add_argument("--rates", type=numbers, default=[4.0, 8.0], metavar="R,S")
    parser.add_argument("--limit", type=positive, default=100, metavar="N", help="questions")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    add_model_options(parser)
    options = parser.parse_args(arguments)
    records = read_jsonl(options.data, QUESTION_FIELDS, check_question)
    (task,) = short_names([options.data])
    questions = [
        make_question(task, number, record, 32)
        for number, record in sample(list(enumerate(records)), options.limit, options.seed)
    ]
    compressor = load_compressor(options)
    log = PredictionLog(
        options.output, {"data": digest(records), "weights": weights_digest(compressor)}
    )
    names = [DEFAULT, *(name for name in options.variants if name != DEFAULT)]
    arms = [Arm(TEXT, 1.0, "read")]
    arms += [Arm(name, rate, "read") for name in names for rate in options.rates]
    todo = {arm: [q for q in questions if log.get(q, arm) is None] for arm in arms}
    answers = _Answers(compressor)
    with tqdm(total=sum(map(len, todo.values())), desc="Answering", unit="answer") as bar:
        for arm, own in todo.items():
            for start in range(0, len(own), _BATCH):
                batch = own[start : start + _BATCH]
                log.append(answers.records(arm, batch))
                bar.update(len(batch))
    log.close()
    rows = summarize("ablations", {task: questions}, arms, log, k=1, seed=options.seed)
    of_default = {arm.rate: arm for arm in arms if arm.name == DEFAULT}
    rows += [
        paired_difference(
            questions,
            arm,
            of_default[arm.rate],
            log,
            "f1",
            benchmark="ablations",
            k=1,
            seed=options.seed,
        )
        for arm in arms
        if arm.name not in (DEFAULT, TEXT)
    ]
    for row in rows:
        row.what = VARIANTS[row.arm].what if row.arm in VARIANTS else "the text itself"
    write_results(
        options.output,
        rows,
        seed=options.seed,
        checkpoint=str(options.checkpoint or DEFAULT),
        device=str(compressor.model.base.device),
        note=f"{len(questions)} of {len(records)} questions of {show(options.data)}, each over its "
        "own context.",
    )
    for row in rows:
        if row.metric.startswith("f1"):
            low, high = row.ci95
            print(f"{row.arm:20} {row.rate:4g} {row.metric:20} {row.score:6.1f} "
                  f"[{low:.1f}, {high:.1f}]")  # fmt: skip


class _Answers:
    """Answers questions by each variant; texts are compressed once."""

    def __init__(self, compressor: ZCompressor) -> None:
        self.compressor = compressor
        self.compressed = Compressed(compressor)

    def records(self, arm: Arm, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """What the log keeps of an arm's answers to some questions."""
        reader, rate = self.compressor.reader, arm.rate
        assert rate is not None
        variant = VARIANTS.get(arm.name, Variant("text", arguments={"copy": False}))
        with variant.around(self.compressor):
            prompts = [self._prompt(variant, question, rate) for question in questions]
            outputs = reader.generate(
                [prompt.segments for prompt in prompts],
                likely=[prompt.likely for prompt in prompts],
                max_new_tokens=questions[0].max_new_tokens,
                batch_size=_BATCH,
                **variant.arguments,
            )
        return [
            prediction_record(question, arm, prompt, output)
            for question, prompt, output in zip(questions, prompts, outputs, strict=True)
        ]

    def _prompt(self, variant: Variant, question: Question, rate: float) -> Prompt:
        z = self._read(variant, question, rate)
        segments = [s for s in (question.before, z, question.after) if s]
        reader = self.compressor.reader
        if variant.look is None:
            reading = read_once(reader.model, segments)
        else:
            scorer = self.compressed.focus.scorer if variant.scores_sentences else None
            reading = variant.look.read(reader, segments, scorer=scorer)
        assert question.gold is not None
        (text,) = self.compressed.texts([question.gold])
        return Prompt(
            segments=reading.last,
            context_tokens=reading.z_tokens,
            source_tokens=len(text),
            stored_bytes=len(text.to_bytes()),
            truncated=False,
            z_tokens=reading.z_tokens,
            likely=reading.likely,
        )

    def _read(self, variant: Variant, question: Question, rate: float) -> ZSequence:
        assert question.gold is not None
        if variant.is_focused:
            return self.compressed.focus.compose(question.text, [question.gold], rate)[0][0]
        (text,) = self.compressed.texts([question.gold])
        return variant.read(text, rate, self.compressor.slots)


if __name__ == "__main__":
    run_script(main)
