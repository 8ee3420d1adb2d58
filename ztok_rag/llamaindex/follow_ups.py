"""Follow-up questions of a chat, as questions that stand alone.

LlamaIndex's chat engines have the LLM rewrite them before they retrieve. The trained reader has
not learned that: the turn before and the question together find more of the right texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ztok_rag.inputs import repair_surrogates
from ztok_rag.llamaindex.chats import ANSWER
from ztok_rag.selection.embedding import Embedder

# Labels of the history, the question and the answer in LlamaIndex's two prompts; LangChain's has
# those of the first, and names people otherwise.
_LABELS = (
    ("Chat History:", "Follow Up Input:", "Standalone question:"),
    ("<Chat History>", "<Follow Up Message>", "<Standalone question>"),
)
_ASKED = re.compile(r"^[ ]*(?:user|human): ", re.I | re.M)
_ANSWERED = re.compile(r"^[ ]*(?:assistant|ai): ", re.I | re.M)
_NEAR = 0.15  # cosine of a question and the turn before it, fitted on dialogues about texts


class Turn(NamedTuple):
    """A question of a chat, and what was said: it and its answer."""

    question: str
    said: str


@dataclass(frozen=True)
class FollowUp:
    """What was asked after the turns of a chat.

    Attributes:
        turns: before, the first one first.
        question: what is asked now.
    """

    turns: tuple[Turn, ...]
    question: str

    @classmethod
    def of(cls, prompt: str) -> FollowUp | None:
        """What LlamaIndex's prompt asks to rewrite; `None` for other prompts."""
        prompt = prompt.rstrip().removesuffix(ANSWER).rstrip()
        for history_label, question_label, answer_label in _LABELS:
            if prompt.endswith(answer_label):
                rest = prompt.removesuffix(answer_label)
                rest, is_asked, question = rest.rpartition(question_label)
                _, has_history, history = rest.partition(history_label)
                if is_asked and has_history and question.strip():
                    return cls(_turns(history), _one_line(question))
        return None

    def standalone(self, embed_model: Embedder, tokenizer: Any, rarity: NDArray[np.float32]) -> str:
        """The question with the turn before it, or alone if it is about something else.

        It goes on from that turn if it is near to it, or has no rare word, as in "In which year?".
        A turn whose question has none goes on from the one before, likewise.

        Args:
            embed_model: tells what is near.
            tokenizer: of the base LLM.
            rarity: `[vocabulary]` how rare each token is; the most that it has is rare.
        """

        def is_common(text: str) -> bool:
            text = f" {repair_surrogates(text, 'the question').lower()}"
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return bool(rarity[ids].max(initial=0) < rarity.max())

        parts, goes_on = [self.question], is_common(self.question)
        if self.turns and not goes_on:
            goes_on = _nearness(embed_model, self.question, self.turns[-1].said) > _NEAR
        for turn in reversed(self.turns):
            if not goes_on:
                break
            parts.insert(0, turn.said)
            goes_on = is_common(turn.question)
        return " ".join(parts)


def _nearness(embed_model: Embedder, *texts: str) -> float:
    """Cosine of two texts."""
    a, b = (np.asarray(embed_model.get_query_embedding(text)) for text in texts)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _turns(history: str) -> tuple[Turn, ...]:
    """The questions of a chat, each with its answer; what is said before the first stands alone."""
    turns = []
    for number, part in enumerate(_ASKED.split(history)):
        asked, *answered = (_one_line(text) for text in _ANSWERED.split(part, maxsplit=1))
        said = " ".join(_ended(text) for text in (asked, *answered) if text)
        if said:
            turns.append(Turn(asked if number else said, said))
    return tuple(turns)


def _ended(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}."


def _one_line(text: str) -> str:
    return " ".join(text.split())
