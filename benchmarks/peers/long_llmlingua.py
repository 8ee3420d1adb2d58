"""LongLLMLingua (arXiv 2310.06839)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from peers.text import count
from peers.tiktoken_files import tiktoken_files
from ztok_rag.codec.base import DEFAULT_BASE, default_base_path, quiet_transformers
from ztok_rag.evaluation import Shorten

if TYPE_CHECKING:
    from ztok_rag.codec.model import ZModel


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
        with tiktoken_files(), quiet_transformers():
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
    tokens = count(tokenizer, "\n\n".join(context)) - start
    steps = math.ceil(tokens / iterative_size)
    size = max(1, tokens // max(1, steps))
    return compress(context, target_token, iterative_size=size, start=start, **more)
