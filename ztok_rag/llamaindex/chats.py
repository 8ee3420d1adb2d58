"""Chats as prompts that the trained reader knows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole

_LAST_QUESTION = re.compile(r"\s*\n([^:\n]*\?)$")


def messages_to_prompt(messages: Sequence[ChatMessage]) -> str:
    """A prompt that goes on with the answer to a chat's last message.

    The reader was trained on questions and answers with labels of their own, and answers far worse
    after "user:" and "assistant:".
    """
    parts = [_labelled(message.role, (message.content or "").strip()) for message in messages]
    asks_itself = parts and "\n" in parts[-1].strip() and parts[-1].endswith(":")
    return "\n".join(parts if asks_itself else [*parts, "Answer:"])


def _labelled(role: MessageRole, content: str) -> str:
    """A message as a part of a prompt."""
    if role == MessageRole.ASSISTANT:
        return f"Answer: {content}"
    if role != MessageRole.USER:
        return f"{content}\n"
    if "\n" not in content:
        return f"Question: {content}"
    # A prompt of its own, which may end in a question.
    return _LAST_QUESTION.sub(r"\n\nQuestion: \1", content)
