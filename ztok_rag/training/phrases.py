"""The text between Z-tokens in training prompts, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.prompts import REPEAT_PROMPT, training_templates

IdArray = NDArray[np.int32]

GAP = " ____"


@dataclass(frozen=True)
class Template:
    """A question prompt in parts.

    Attributes:
        head: before the context.
        middle: between context and question.
        end: after the question.
        is_spaced: whether the answer has a space before it; the prompt's end has it otherwise.
    """

    head: IdArray
    middle: IdArray
    end: IdArray
    is_spaced: bool


@dataclass(frozen=True)
class Phrases:
    """What stands in prompts beside context, question and answer.

    Attributes:
        start: the token that begins what the reader reads.
        end: the token that ends an answer.
        blank: a blank line.
        ask: what is before a question that is asked before the context.
        repeat: the request to repeat the text.
        cue: what is before words of the text after which the reader goes on.
        cue_end: what is after them.
        gap: what stands for words left out.
        templates: question prompts, the first one the most used.
    """

    start: IdArray
    end: IdArray
    blank: IdArray
    ask: IdArray
    repeat: IdArray
    cue: IdArray
    cue_end: IdArray
    gap: IdArray
    templates: tuple[Template, ...]

    @classmethod
    def of(cls, tokenizer: Any, start_token: int) -> Phrases:
        """The phrases in the tokens of a base LLM."""

        def ids(text: str) -> IdArray:
            return np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

        templates = []
        for template in training_templates():
            head, rest = template.split("{context}")
            middle, end = rest.split("{question}")
            # The question is tokenized with the space before it.
            parts = ids(head), ids(middle.removesuffix(" ")), ids(end)
            templates.append(Template(*parts, is_spaced=not end[-1].isspace()))
        return cls(
            start=np.array([start_token], np.int32),
            end=np.array([tokenizer.eos_token_id], np.int32),
            blank=ids("\n\n"),
            ask=ids("Question:"),
            repeat=ids(REPEAT_PROMPT),
            cue=ids('\n\nText after "'),
            cue_end=ids('":'),
            gap=ids(GAP),
            templates=tuple(templates),
        )
