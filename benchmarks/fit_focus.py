"""Fit the weights of query-aware sentence scores, and compare ways to locate an answer.

`LEXICAL_WEIGHT`, `TEXT_WEIGHT` and `TEMPERATURE` are fitted to give the sentence with the answer
the highest probability among the sentences of the retrieved passages. The script prints them with
their scores on development data. Then it prints the probability of the answer's tokens, and how
often the most probable token is in the answer, by sentences, by the relevance model, and by both.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from tqdm.auto import tqdm

from ztok_rag.codec.model import ZModel
from ztok_rag.codec.segment import IntArray
from ztok_rag.selection.embedding import default_embedder
from ztok_rag.selection.query_aware import combine, owners
from ztok_rag.selection.relevance import find_answers
from ztok_rag.selection.sentences import (
    LEXICAL_WEIGHT,
    TEMPERATURE,
    TEXT_WEIGHT,
    FloatArray,
    SentenceScorer,
    probabilities,
    split_sentences,
)
from ztok_rag.training.passages import Passage, read_passages
from ztok_rag.training.relevance import RelevanceSettings, prepare


@dataclass(frozen=True)
class Case:
    """A question: features of the sentences of each text, and the sentence with the answer.

    Attributes:
        evidence: `[sentences, 2]` per text, as returned by `SentenceScorer.evidence`.
        answer: index of the answer's sentence among the sentences of all texts.
    """

    evidence: list[FloatArray]
    answer: int


def collect(
    passages: Sequence[Passage], scorer: SentenceScorer, ks: Sequence[int], name: str
) -> list[Case]:
    """A case per question and `k`: the gold passage first, then the nearest others."""
    texts = [passage.text for passage in passages]
    vectors = np.asarray(scorer.embed_model.get_text_embedding_batch(texts))
    scorer.prepare(texts)
    cases = []
    for number, passage in enumerate(tqdm(passages, desc=name)):
        for question, answers in passage.questions:
            at = passage.text.find(answers[0])
            if at < 0:
                continue
            own = next(
                i for i, (start, end) in enumerate(split_sentences(passage.text)) if at < end
            )
            query = np.asarray(scorer.embed_model.get_query_embedding(question))
            nearest = [i for i in np.argsort(-(vectors @ query)).tolist() if i != number]
            for k in ks:
                chosen = [number, *nearest[: k - 1]]
                evidence = scorer.evidence(question, [texts[i] for i in chosen])
                cases.append(Case(evidence, own))
    return cases


def judge(cases: Sequence[Case], weights: Sequence[float]) -> tuple[float, float]:
    """Mean negative log-likelihood of the answer's sentence in nats, and % of cases it is first."""
    nats, first = 0.0, 0
    for case in cases:
        likely = np.concatenate(probabilities(case.evidence, *weights))
        nats -= math.log(max(float(likely[case.answer]), 1e-300))
        first += int(likely.argmax()) == case.answer
    return nats / len(cases), 100 * first / len(cases)


@dataclass(frozen=True)
class TokenCase:
    """A question: the arguments of `combine`, and where the answer is in the first text.

    Attributes:
        by_token: per text, the probability of each token, `[tokens]`.
        by_sentence: per text, the probability of each sentence, `[sentences]`.
        sentences: per text, the sentence of each token, `[tokens]`.
        places: bool `[places, tokens]`: the tokens of each occurrence of the answer.
    """

    by_token: list[NDArray[np.float32]]
    by_sentence: list[FloatArray]
    sentences: list[IntArray]
    places: NDArray[np.bool_]


def collect_tokens(
    passages: Sequence[Passage], model: ZModel, scorer: SentenceScorer, ks: Sequence[int]
) -> list[TokenCase]:
    """A token case per question and `k`: the gold passage first, then the nearest others."""
    kept, sources, asked = prepare(model, passages, RelevanceSettings.max_tokens)
    texts = [passage.text for passage in kept]
    sentences = [
        owners(source.spans, split_sentences(text))
        for source, text in zip(sources, texts, strict=True)
    ]
    vectors = np.asarray(scorer.embed_model.get_text_embedding_batch(texts))
    cases = []
    for one in tqdm(asked, desc="questions"):
        query = np.asarray(scorer.embed_model.get_query_embedding(one.question))
        nearest = [i for i in np.argsort(-(vectors @ query)).tolist() if i != one.passage]
        for k in ks:
            chosen = [one.passage, *nearest[: k - 1]]
            by_token = find_answers(model, one.question, [sources[i] for i in chosen])
            by_sentence = scorer.probabilities(one.question, [texts[i] for i in chosen])
            cases.append(
                TokenCase(by_token, by_sentence, [sentences[i] for i in chosen], one.answers)
            )
    return cases


def judge_tokens(
    cases: Sequence[TokenCase], *, tokens: bool, sentences: bool
) -> tuple[float, float]:
    """Mean nats of the answer, and % of cases in which the most probable token is in it.

    Args:
        cases: the questions.
        tokens: use the token probabilities of the relevance model.
        sentences: use the sentence probabilities.
    """
    nats, first = 0.0, 0
    for case in cases:
        by_token = case.by_token if tokens else [np.ones_like(p) for p in case.by_token]
        by_sentence = case.by_sentence
        if not sentences:  # proportional to their lengths
            by_sentence = [np.bincount(own).astype(float) for own in case.sentences]
        likely = combine(by_token, by_sentence, case.sentences)
        logs = np.log(np.maximum(likely[0], 1e-300))
        nats -= float(np.logaddexp.reduce([logs[place].mean() for place in case.places]))
        best = int(np.concatenate(likely).argmax())
        first += best < len(likely[0]) and bool(case.places[:, best].any())
    return nats / len(cases), 100 * first / len(cases)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="JSON Lines to fit to.")
    parser.add_argument("--dev", type=Path, required=True, help="JSON Lines to judge on.")
    parser.add_argument("--passages", type=int, default=300, help="Passages of each, at most.")
    parser.add_argument("--k", default="1,3,10", help="Numbers of passages retrieved.")
    options = parser.parse_args(arguments)
    ks = [int(k) for k in options.k.split(",")]
    model = ZModel.from_pretrained()
    scorer = SentenceScorer(model.base.tokenizer, default_embedder())
    cases = {}
    for name in ("train", "dev"):
        passages = [p for p in read_passages(getattr(options, name)) if p.questions]
        order = np.random.default_rng(0).permutation(len(passages))[: options.passages]
        cases[name] = collect([passages[i] for i in order.tolist()], scorer, ks, name)
    shipped = (LEXICAL_WEIGHT, TEXT_WEIGHT, TEMPERATURE)
    found = minimize(
        lambda w: judge(cases["train"], (w[0], w[1], max(1e-3, w[2])))[0],
        np.array(shipped),
        method="Nelder-Mead",
        options={"xatol": 5e-3, "fatol": 1e-4},
    ).x.tolist()
    for name, weights in (("shipped", shipped), ("fitted", found)):
        nats, first = judge(cases["dev"], weights)
        lexical, text, temperature = weights
        print(
            f"{name}: LEXICAL_WEIGHT {lexical:.2f}, TEXT_WEIGHT {text:.2f}, "
            f"TEMPERATURE {temperature:.3f}: on dev {nats:.3f} nats, {first:.1f}% right"
        )
    drawn = [passages[i] for i in order.tolist()]
    tokens = collect_tokens(drawn, model, scorer, ks)
    for name, used in (
        ("sentences", {"tokens": False, "sentences": True}),
        ("relevance model", {"tokens": True, "sentences": False}),
        ("both", {"tokens": True, "sentences": True}),
    ):
        nats, first = judge_tokens(tokens, **used)
        print(f"{name}: on dev {nats:.3f} nats, {first:.1f}% right")


if __name__ == "__main__":
    main()
