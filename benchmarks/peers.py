"""Peers of Z-tokens: ways to shorten retrieved text to a number of tokens, without training.

What a peer keeps is read by the text reader, at the token budget that Z-tokens have at the same
rate. Every peer is a function of the question, the retrieved chunks and the budget, in tokens of
the base LLM; models and packages are loaded when a peer is first called.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from embed import embed_queries, embed_texts
from ztok_rag.codec.base import DEFAULT_BASE, default_base_path, quiet_transformers
from ztok_rag.errors import DataError
from ztok_rag.evaluation import JOIN, Shorten, cut_end
from ztok_rag.selection.focus import QuestionFocus, resolve_in_memory, split_pieces
from ztok_rag.selection.sentences import SentenceScorer
from ztok_rag.training.objective import surprisal

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.model import ZModel

_WINDOW = 1024
"""Most tokens that are read at once for their surprisal."""

_BATCH_TOKENS = 4096
"""Most positions of a batch that is read for surprisal."""

_PACKAGES = {
    "longllmlingua": "llama_index.postprocessor.longllmlingua",
    "trimwise": "llama_index.postprocessor.trimwise",
}


def make_peers(compressor: ZCompressor, *, best_first: bool) -> dict[str, Shorten]:
    """The peers by the names of their arms; none of them has loaded anything yet.

    Args:
        compressor: whose base LLM prunes and whose tokens are counted.
        best_first: the chunks come in the order in which they were retrieved; else peers that
            choose between chunks rank them by the default embedding model.
    """
    tokenizer = compressor.tokenizer
    return {
        "truncate": Truncate(tokenizer),
        "fewer-chunks": FewerChunks(tokenizer, best_first=best_first),
        "sentences": Sentences(tokenizer),
        "pieces": Pieces(compressor),
        "self-information": SelfInformation(compressor.model),
        "longllmlingua": LongLLMLingua(compressor.model),
        "trimwise": Trimwise(tokenizer),
    }


PEER_NAMES = (
    "truncate",
    "fewer-chunks",
    "sentences",
    "pieces",
    "self-information",
    "longllmlingua",
    "trimwise",
)


def check_packages(arms: Sequence[str]) -> None:
    """Check that the packages of the arms are installed.

    Raises:
        DataError: one is not; names it.
    """
    for arm in arms:
        name = _PACKAGES.get(arm)
        if name is None:
            continue
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            package = name.replace(".", "-").replace("_", "-")
            raise DataError(
                f"the arm {arm} needs the package {package}; run `pip install ztok-rag[bench]`."
            )


class Truncate(Shorten):
    """The first words of the chunks."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        return cut_end(JOIN.join(chunks), budget, self.tokenizer)[0]


class FewerChunks(Shorten):
    """As many of the best chunks as fit whole, in the order given; else the best one, cut."""

    def __init__(self, tokenizer: Any, *, best_first: bool) -> None:
        self.tokenizer = tokenizer
        self.best_first = best_first

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        order = list(range(len(chunks)))
        if not self.best_first and len(chunks) > 1:
            order = np.argsort(-_similarities(question, chunks), kind="stable").tolist()
        kept = ""
        for n in range(1, len(chunks) + 1):
            longer = JOIN.join(chunks[i] for i in sorted(order[:n]))
            if _count(self.tokenizer, longer) > budget:
                break
            kept = longer
        return kept or cut_end(chunks[order[0]], budget, self.tokenizer)[0]


class Sentences(Shorten):
    """The sentences most similar to the question, in text order, the last of them cut to fit.

    As LlamaIndex's `SentenceEmbeddingOptimizer`, with its sentence splitter and the default
    embedding model, but over all chunks at once and to a budget of tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _split(self) -> Callable[[str], list[str]]:
        from llama_index.core.node_parser.text.utils import split_by_sentence_tokenizer

        return split_by_sentence_tokenizer()

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        places = [
            (chunk, sentence.strip())
            for chunk, text in enumerate(chunks)
            for sentence in self._split(text)
            if sentence.strip()
        ]
        likeness = _similarities(question, [sentence for _, sentence in places])
        return _fill(np.argsort(-likeness, kind="stable").tolist(), places, budget, self.tokenizer)


class Pieces(Shorten):
    """The pieces of text that Z-tokens are spent on by the question, as text.

    What `QuestionFocus` finds likeliest to answer, in text order, the last piece cut to fit. So
    the choice is ours, and what is read is not.
    """

    def __init__(self, compressor: ZCompressor) -> None:
        self.tokenizer = compressor.tokenizer
        scorer = SentenceScorer(compressor.tokenizer)
        self.focus = QuestionFocus(compressor, scorer, resolve_in_memory(compressor))

    def prepare(self, chunks: Sequence[str]) -> None:
        self.focus.prepare(chunks)

    def stored_bytes(self, chunks: Sequence[str]) -> int:
        """Of the text, and of all that choosing asks for: Z-tokens and sentences' bits."""
        return super().stored_bytes(chunks) + self.focus.stored_bytes(chunks)

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        places = [
            (i, text[a:b].strip()) for i, text in enumerate(chunks) for a, b in split_pieces(text)
        ]
        worth = np.concatenate(self.focus.worth(question, chunks))
        order = [i for i in np.argsort(-worth, kind="stable").tolist() if places[i][1]]
        return _fill(order, places, budget, self.tokenizer)


class SelfInformation(Shorten):
    """The words that surprise the plain base LLM most, in text order.

    Selective Context (Li et al., 2023) with words as its lexical units: a word's self-information
    is the mean over its tokens, read chunk by chunk.
    """

    def __init__(self, model: ZModel) -> None:
        self.model = model

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        tokenizer = self.model.base.tokenizer
        places: list[tuple[int, str]] = []
        scores: list[float] = []
        for chunk, (text, nats) in enumerate(zip(chunks, self._surprisal(chunks), strict=True)):
            for word, value in _word_means(text, tokenizer, nats):
                places.append((chunk, word))
                scores.append(value)
        if not places:
            return ""
        order = sorted(range(len(places)), key=lambda i: -scores[i])
        costs = [len(ids) for ids in _encode(tokenizer, [f" {word}" for _, word in places])]
        taken: list[int] = []
        room = budget
        for i in order:
            if costs[i] <= room:
                taken.append(i)
                room -= costs[i]
        # The blank lines between chunks count too, and a text's first word has no space before it.
        while len(taken) > 1:
            text = _in_order({i: places[i][1] for i in taken}, places)
            if _count(tokenizer, text) <= budget:
                return text
            taken.pop()
        best = taken[0] if taken else order[0]
        return cut_end(places[best][1], budget, tokenizer)[0]

    def _surprisal(self, chunks: Sequence[str]) -> list[NDArray[np.float32]]:
        """The surprisal of every token of each chunk, in nats; long chunks read in windows."""
        ids = _encode(self.model.base.tokenizer, chunks)
        windows = [
            (chunk, tokens[start : start + _WINDOW])
            for chunk, tokens in enumerate(ids)
            for start in range(0, len(tokens), _WINDOW)
        ]
        parts: list[list[NDArray[np.float32]]] = [[] for _ in chunks]
        at_once = max(1, _BATCH_TOKENS // max((len(w) for _, w in windows), default=1))
        for start in range(0, len(windows), at_once):
            batch = windows[start : start + at_once]
            nats = surprisal(self.model, [window for _, window in batch])
            ends = np.cumsum([len(window) for _, window in batch])[:-1]
            for (chunk, _), part in zip(batch, np.split(nats.cpu().numpy(), ends), strict=True):
                parts[chunk].append(part)
        return [np.concatenate(p) if p else np.zeros(0, np.float32) for p in parts]


class LongLLMLingua(Shorten):
    """LongLLMLingua with the base LLM, by LlamaIndex's postprocessor and its `llmlingua`.

    The settings are those of the postprocessor's documentation. Its compressor is called with
    the chunks as a list: the postprocessor itself joins them to one string, so that nothing is
    left for LongLLMLingua's ranking, choice and reordering of chunks. What it returns may be a
    few tokens longer than the budget.
    """

    SETTINGS: Mapping[str, Any] = {
        "condition_in_question": "after_condition",
        "condition_compare": True,
        "context_budget": "+100",
        "reorder_context": "sort",
        "dynamic_context_compression_ratio": 0.3,
    }

    def __init__(self, model: ZModel) -> None:
        self.model = model

    @cached_property
    def _postprocessor(self) -> Any:
        base = self.model.base
        with _tiktoken_files(), quiet_transformers():
            from llama_index.postprocessor.longllmlingua import LongLLMLinguaPostprocessor

            postprocessor = LongLLMLinguaPostprocessor(
                model_name=str(default_base_path() if base.name == DEFAULT_BASE else base.name),
                device_map=base.device.type,
                model_config={"torch_dtype": base.dtype},
                additional_compress_kwargs=dict(self.SETTINGS),
            )
        lingua = postprocessor._llm_lingua
        lingua.model = _TupleCaches(lingua.model)
        lingua.iterative_compress_prompt = partial(
            _in_even_steps, lingua.tokenizer, lingua.iterative_compress_prompt
        )
        return postprocessor

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        postprocessor = self._postprocessor
        result = postprocessor._llm_lingua.compress_prompt(
            [chunk.strip() for chunk in chunks],
            question=" ".join(question.split()),
            concate_question=False,
            target_token=budget,
            rank_method=postprocessor.rank_method,
            **postprocessor.additional_compress_kwargs,
        )
        return str(result["compressed_prompt"]).strip()


class Trimwise(Shorten):
    """Passages by LlamaIndex's Trimwise postprocessor, in text order.

    Its strategy is `hybrid`, word and embedding similarity together, with the default embedding
    model. Its passages are paragraphs: of one that is longer than the budget, it keeps the first
    words.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _trimmer(self) -> Any:
        from trimwise import TrimConfig, Trimmer

        def embed(query: str, passages: Sequence[str]) -> tuple[Any, Any]:
            return embed_queries([query])[0].tolist(), embed_texts(passages).tolist()

        return Trimmer(TrimConfig(token_encoding="cl100k_base"), embedding_callback=embed)

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.trimwise import TrimwiseNodePostprocessor

        nodes = [NodeWithScore(node=TextNode(text=chunk)) for chunk in chunks]
        limit = budget
        while True:
            postprocessor = TrimwiseNodePostprocessor(
                limit=limit,
                strategy="hybrid",
                trimmer=self._trimmer,
                token_counter=partial(_count, self.tokenizer),
            )
            with _tiktoken_files():
                kept = postprocessor.postprocess_nodes(nodes, query_str=question)
            text = JOIN.join(item.node.get_content() for item in kept)
            # It counts the parts, and not the blank lines between them.
            over = _count(self.tokenizer, text) - budget
            if over <= 0 or not limit:
                return text
            limit = max(0, limit - over)


class _TupleCaches:
    """A causal LM that takes and returns key-value caches as pairs of tensors per layer.

    `llmlingua` cuts caches in this form, which Transformers gave up for objects.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(
        self, input_ids: Any, *, attention_mask: Any, past_key_values: Any, use_cache: bool
    ) -> SimpleNamespace:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past_key_values or ()):
            cache.update(keys, values, layer)
        with torch.inference_mode():
            output = self.model(
                input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=use_cache
            )
        pairs = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        return SimpleNamespace(logits=output.logits.float(), past_key_values=pairs)


def _in_even_steps(
    tokenizer: Any,
    compress: Callable[..., Any],
    context: list[str],
    target_token: float,
    iterative_size: int = 200,
    start: int = 0,
    **more: Any,
) -> Any:
    """Call `iterative_compress_prompt` with equal steps of at most `iterative_size` tokens.

    It leaves what does not fill a last step as it is, which can be most of a short text.
    """
    tokens = _count(tokenizer, "\n\n".join(context)) - start
    steps = math.ceil(tokens / iterative_size)
    size = max(1, tokens // max(1, steps))
    return compress(context, target_token, iterative_size=size, start=start, **more)


@contextmanager
def _tiktoken_files() -> Iterator[None]:
    """Let tiktoken find the encodings that LlamaIndex ships, so that it downloads nothing."""
    import llama_index.core

    if "TIKTOKEN_CACHE_DIR" in os.environ:
        yield
        return
    folder = Path(str(llama_index.core.__file__)).parent / "_static" / "tiktoken_cache"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return encoded["input_ids"]  # type: ignore[no-any-return]


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _similarities(question: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity `[n]` of each text to the question, by the default embedding model."""
    if not texts:
        return np.zeros(0, np.float32)
    return np.asarray(embed_texts(texts) @ embed_queries([question])[0])


def _in_order(kept: Mapping[int, str], places: Sequence[tuple[int, str]]) -> str:
    """Kept pieces in text order: one space between them, `JOIN` between chunks.

    Args:
        kept: text of a piece by its number in `places`.
        places: the chunk of every piece, and the piece.
    """
    by_chunk: dict[int, list[str]] = {}
    for i in sorted(kept):
        by_chunk.setdefault(places[i][0], []).append(kept[i])
    return JOIN.join(" ".join(pieces) for pieces in by_chunk.values())


def _fill(
    order: Sequence[int], places: Sequence[tuple[int, str]], budget: int, tokenizer: Any
) -> str:
    """The first pieces in an order that fit a number of tokens, in text order, the last one cut.

    Args:
        order: numbers in `places`, the best first.
        places: the chunk of every piece, and the piece.
    """
    kept: dict[int, str] = {}
    for best in order:
        longer = {**kept, best: places[best][1]}
        if _count(tokenizer, _in_order(longer, places)) <= budget:
            kept = longer
            continue
        room = budget - _count(tokenizer, _in_order(kept, places))
        while room > 0:
            longer[best] = cut_end(places[best][1], room, tokenizer)[0]
            if (
                kept
                and longer[best].split() != places[best][1].split()[: len(longer[best].split())]
            ):
                break  # not even its first word fits
            over = _count(tokenizer, _in_order(longer, places)) - budget
            if over <= 0:
                return _in_order(longer, places)
            room -= over
        break
    return _in_order(kept, places)


def _word_means(
    text: str, tokenizer: Any, values: NDArray[np.float32]
) -> Iterator[tuple[str, float]]:
    """The words of a text, each with the mean value of the tokens that end in it.

    Args:
        values: `[n]`, of the text's tokens.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    ends = np.asarray([end for _, end in offsets])
    for word in re.finditer(r"\S+", text):
        own = values[(ends > word.start()) & (ends <= word.end())]
        if own.size:
            yield word.group(), float(own.mean())
