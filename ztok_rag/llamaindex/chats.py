"""Chats as prompts that the trained reader knows."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, MessageRole

ANSWER = "Answer:"
"""The label of what the reader writes."""


def messages_to_prompt(messages: Sequence[ChatMessage]) -> str:
    """A prompt that goes on with the answer to a chat's last message.

    The reader was trained on questions and answers with labels of their own, and answers far worse
    after "user:" and "assistant:".
    """
    parts = [_labelled(message.role, (message.content or "").strip()) for message in messages]
    asks_itself = parts and "\n" in parts[-1] and parts[-1].endswith(":")
    return "\n".join(parts if asks_itself else [*parts, ANSWER])


def _labelled(role: MessageRole, content: str) -> str:
    """A message as a part of a prompt."""
    if role == MessageRole.ASSISTANT:
        return f"{ANSWER} {content}"
    if role != MessageRole.USER:
        return f"{content}\n"
    rest, _, last = content.rpartition("\n")
    if not rest:
        return f"Question: {content}"
    # A prompt of its own, which may end in a question.
    is_question = last.endswith("?") and ":" not in last
    return f"{rest.rstrip()}\n\nQuestion: {last}" if is_question else content
