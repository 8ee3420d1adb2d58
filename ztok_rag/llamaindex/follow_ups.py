"""Follow-up questions of a chat, as questions that stand alone.

LlamaIndex's chat engines have the LLM rewrite them before they retrieve. The trained reader has
not learned that, and what it writes finds fewer of the right texts than anything below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztok_rag.inputs import repair_surrogates
from ztok_rag.llamaindex.chats import ANSWER
from ztok_rag.selection.embedding import Embedder

# Labels of the history, the question and the answer in LlamaIndex's two prompts.
_LABELS = (
    ("Chat History:", "Follow Up Input:", "Standalone question:"),
    ("<Chat History>", "<Follow Up Message>", "<Standalone question>"),
)
_ASKED = re.compile(r"^[ ]*user: ", re.M)
_ANSWERED = re.compile(r"^[ ]*assistant: ", re.M)
_NEAR = 0.15  # cosine of a question and the turn before it, fitted on dialogues about texts


@dataclass(frozen=True)
class FollowUp:
    """What was asked after a turn of a chat.

    Attributes:
        turn: the question before and its answer; empty where nobody asked before.
        question: what is asked now.
    """

    turn: str
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
                    return cls(_last_turn(history), _one_line(question))
        return None

    def standalone(self, embed_model: Embedder, tokenizer: Any, rarity: NDArray[np.float32]) -> str:
        """The question with the turn before it, or alone if it is about something else.

        It goes on from that turn if it is near to it, or has no rare word, as in "In which year?".

        Args:
            embed_model: tells what is near.
            tokenizer: of the base LLM.
            rarity: `[vocabulary]` how rare each token is; the most that it has is rare.
        """
        if not self.turn:
            return self.question
        text = repair_surrogates(self.question, "the question").lower()
        ids = tokenizer(f" {text}", add_special_tokens=False, verbose=False)["input_ids"]
        is_common = rarity[ids].max() < rarity.max()
        if is_common or self._nearness(embed_model) > _NEAR:
            return f"{self.turn} {self.question}"
        return self.question

    def _nearness(self, embed_model: Embedder) -> float:
        """Cosine of the question and the turn before it."""
        a, b = (np.asarray(embed_model.get_query_embedding(t)) for t in (self.question, self.turn))
        return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def _last_turn(history: str) -> str:
    """The last question of a chat, and its answer."""
    last = _ASKED.split(history)[-1]
    asked, *answered = (_one_line(part) for part in _ANSWERED.split(last, maxsplit=1))
    said = [part for part in (asked, *answered) if part]
    return " ".join(part if part[-1] in ".?!" else f"{part}." for part in said)


def _one_line(text: str) -> str:
    return " ".join(text.split())
