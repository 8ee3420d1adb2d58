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

QUERY_ENGINE_TEMPLATE = (
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\n"
    "Query: {question}\nAnswer: "
)
"""LlamaIndex's default question prompt, written out so that training does not import it."""

REPEAT_PROMPT = "\n\nRepeat the text above word for word:\n"
"""Follows the Z-tokens of one window; the reader then writes the window's text."""


def training_templates() -> tuple[str, ...]:
    """Question prompts to train on: ours, and the one that LlamaIndex's query engines send.

    The latter counts twice, since it is the one most used.
    """
    return (
        QA_TEMPLATE,
        PASSAGES_TEMPLATE,
        TEXT_TEMPLATE,
        QUERY_ENGINE_TEMPLATE,
        QUERY_ENGINE_TEMPLATE,
    )
