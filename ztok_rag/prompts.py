"""The prompts a reader is trained on. `{context}` takes text or Z-tokens."""

from __future__ import annotations

QA_TEMPLATE = "{context}\n\nQuestion: {question}\nAnswer:"
"""The shortest question prompt, and the one most trained on."""

PASSAGES_TEMPLATE = (
    "Read the passages and answer the question in a few words.\n\n{context}\n\n"
    "Use only the passages, answer in a few words and add nothing else.\n\n"
    "Question: {question}\nAnswer:"
)

TEXT_TEMPLATE = (
    "Text: {context}\n\nAnswer the question from the text above as concisely as you can.\n\n"
    "Question: {question}\n\nAnswer:"
)

REPEAT_PROMPT = "\n\nRepeat the text above word for word:\n"
"""Follows the Z-tokens of one window; the reader then writes the window's text."""


def training_templates() -> tuple[str, ...]:
    """Question prompts to train on: ours, and LlamaIndex's default where it is installed."""
    templates = [QA_TEMPLATE, PASSAGES_TEMPLATE, TEXT_TEMPLATE]
    try:
        from llama_index.core.prompts.default_prompts import DEFAULT_TEXT_QA_PROMPT_TMPL
    except ImportError:
        return tuple(templates)
    default = DEFAULT_TEXT_QA_PROMPT_TMPL
    default = default.replace("{context_str}", "{context}").replace("{query_str}", "{question}")
    # The default prompt counts twice: it is what a query engine sends.
    return (*templates, default, default)
