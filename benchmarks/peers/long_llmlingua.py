"""LongLLMLingua (arXiv 2310.06839), by its authors' package."""

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
    """LongLLMLingua (arXiv 2310.06839) with the base LLM as its small model.

    It runs the package `llmlingua` with the settings in the documentation of LlamaIndex's
    postprocessor. The package is called directly, with a list of chunks: the postprocessor joins
    them to one string, which leaves LongLLMLingua no chunks to rank, choose and reorder. The
    result may be a few tokens longer than the budget.
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
    """A causal LM whose KV cache is a pair of tensors per layer.

    `llmlingua` needs caches in this form to cut them. Transformers 5 has objects instead.
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
    """Call `iterative_compress_prompt` with steps of equal size, at most `iterative_size` tokens.

    With its own step size, it leaves the rest after the last full step uncompressed. Of a short
    text, that can be most.
    """
    tokens = count(tokenizer, "\n\n".join(context)) - start
    steps = math.ceil(tokens / iterative_size)
    size = max(1, tokens // max(1, steps))
    return compress(context, target_token, iterative_size=size, start=start, **more)
