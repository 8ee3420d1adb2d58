"""Training of the selector: questions, and where their answers stand in the text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import ZModel
from ztok_rag.selection.relevance import PassageFeatures, score_pairs
from ztok_rag.training.labels import find_matches
from ztok_rag.training.passages import Passage, near

_COMPRESSED_AT_ONCE = 16
_NEAR = 6


@dataclass(frozen=True)
class RelevanceSettings:
    """How to train it.

    Attributes:
        steps: optimizer steps; 0 leaves it as it is.
        batch: questions per step.
        distractors: passages from near the right one in the data, beside which it is found.
        max_tokens: longer passages are left out.
        lr: peak learning rate, after `warmup` steps; then a cosine to zero.
        weight_decay: of AdamW.
        seed: of the order of questions and the choice of distractors.
    """

    steps: int = 1600
    batch: int = 24
    distractors: int = 2
    max_tokens: int = 256
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class AskedPassage:
    """A question about one of some passages.

    Attributes:
        question: the question.
        passage: index of the passage.
        answers: bool `[places, n]`, the passage's tokens at each place where the answer stands.
    """

    question: str
    passage: int
    answers: NDArray[np.bool_]


def train_relevance(
    model: ZModel,
    passages: Sequence[Passage],
    settings: RelevanceSettings | None = None,
    *,
    log: Path | None = None,
    progress: bool = True,
) -> int:
    """Train the selector of a checkpoint.

    Questions count whose answer stands in their passage word for word. If there are none, or the
    checkpoint has no selector, nothing is trained.

    Args:
        model: the checkpoint.
        passages: texts with questions, like ones near each other.
        settings: see `RelevanceSettings`.
        log: JSON Lines file to write, with the loss of each step in nats per question.
        progress: show bars with rate and time left.

    Returns:
        The questions that were trained on.
    """
    settings = settings or RelevanceSettings()
    if not settings.steps or model.selector is None:
        return 0
    _, sources, asked = prepare(model, passages, settings.max_tokens, progress=progress)
    if not asked:
        return 0
    selector = model.selector.train()
    for parameter in selector.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        selector.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    order: list[int] = []
    lines = []
    bar = tqdm(range(settings.steps), desc="selector", unit="step", disable=not progress)
    for step in bar:
        if not order:
            # Questions of a batch stand next to each other in the data, so they share passages.
            shift = int(rng.integers(settings.batch))
            starts = np.arange(-shift, len(asked), settings.batch)
            order = rng.permutation(starts).tolist()
        start = order.pop()
        batch = asked[max(0, start) : start + settings.batch]
        nats = answer_nats(model, batch, sources, settings.distractors, rng).mean()
        torch.autograd.backward(nats)
        nn.utils.clip_grad_norm_(selector.parameters(), 1.0)
        share = min(1.0, (step + 1) / settings.warmup)
        share *= 0.5 + 0.5 * math.cos(math.pi * step / settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lines.append(json.dumps({"step": step + 1, "nats": round(float(nats.detach()), 5)}))
        bar.set_postfix(nats=f"{float(nats.detach()):.2f}")
    selector.eval()
    if log is not None:
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(asked)


def prepare(
    model: ZModel, passages: Sequence[Passage], max_tokens: int, *, progress: bool = True
) -> tuple[list[Passage], list[PassageFeatures], list[AskedPassage]]:
    """Passages that hold answers, as the selector sees them, and their questions."""
    compressor = ZCompressor(model)
    kept = [
        passage
        for passage in passages
        if any(answer in passage.text for _, answers in passage.questions for answer in answers)
        and compressor.count_tokens(passage.text) <= max_tokens
    ]
    sources: list[PassageFeatures] = []
    bar = tqdm(total=len(kept), desc="compressing", unit="passage", disable=not progress)
    for start in range(0, len(kept), _COMPRESSED_AT_ONCE):
        texts = [passage.text for passage in kept[start : start + _COMPRESSED_AT_ONCE]]
        sources += map(PassageFeatures.of, texts, compressor.tokenize(texts))
        bar.update(len(texts))
    bar.close()
    asked = [
        AskedPassage(question, number, places)
        for number, (passage, source) in enumerate(zip(kept, sources, strict=True))
        for question, answers in passage.questions
        if len(places := find_places(passage.text, answers, source))
    ]
    return kept, sources, asked


def find_places(text: str, answers: Sequence[str], source: PassageFeatures) -> NDArray[np.bool_]:
    """Where answers stand in a text word for word: bool `[places, n]` of its tokens."""
    starts, ends = source.spans.T
    places = {
        tuple(((starts < end) & (ends > start)).tolist())
        for start, end in find_matches(text, answers)
    }
    return np.array(sorted(places), dtype=np.bool_).reshape(len(places), len(starts))


def answer_nats(
    model: ZModel,
    batch: Sequence[AskedPassage],
    sources: Sequence[PassageFeatures],
    distractors: int,
    rng: np.random.Generator,
) -> Tensor:
    """How unlikely the answers are, `[questions]` nats.

    All tokens of a question's passages share a softmax. The likelihood of a place is the
    geometric mean of its tokens', so that no part of an answer is left out; places are added.
    """
    pairs: list[tuple[str, PassageFeatures]] = []
    firsts = []
    for asked in batch:
        beside = near(np.arange(len(sources)), asked.passage, _NEAR)
        others = rng.choice(beside, min(len(beside), distractors), replace=False).tolist()
        firsts.append(len(pairs))
        pairs += [(asked.question, sources[i]) for i in [asked.passage, *others]]
    logits = score_pairs(model, pairs)
    nats = []
    for asked, start, end in zip(batch, firsts, [*firsts[1:], len(pairs)], strict=True):
        likely = logits[start : start + 1, : asked.answers.shape[1]]
        likely = likely - logits[start:end].flatten().logsumexp(0)
        places = torch.from_numpy(asked.answers).to(likely.device, likely.dtype)
        nats.append(-((places * likely).sum(1) / places.sum(1)).logsumexp(0))
    return torch.stack(nats)
