"""How a chat is put to the reader."""

from __future__ import annotations

import pytest
from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic
from llama_index.core.llms import ChatMessage

from ztok_rag import ZTokenLLM
from ztok_rag.llamaindex.chats import messages_to_prompt

QA = "Context:\nIt is tall.\nQuery: Is it?\nAnswer: "


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([("user", "Who?")], "Question: Who?\nAnswer:"),
        (
            [("system", "Be kind.\n\n⟦…⟧\n"), ("user", "Who?"), ("assistant", " Ana.")],
            "Be kind.\n\n⟦…⟧\n\nQuestion: Who?\nAnswer: Ana.\nAnswer:",
        ),
        (
            [("user", "Who?"), ("assistant", "Ana."), ("user", "Why?")],
            "Question: Who?\nAnswer: Ana.\nQuestion: Why?\nAnswer:",
        ),
        ([("user", QA)], QA.strip()),
        ([("user", "It is tall.\nIs it?")], "It is tall.\n\nQuestion: Is it?\nAnswer:"),
        ([("user", "Is it?\nBe brief.")], "Is it?\nBe brief.\nAnswer:"),
        ([("assistant", "I am.\nAnd you?")], "Answer: I am.\nAnd you?\nAnswer:"),
        ([("user", "Say this:")], "Question: Say this:\nAnswer:"),
        ([("tool", "42")], "42\n\nAnswer:"),
        ([], "Answer:"),
    ],
)
def test_a_chat_gets_the_labels_that_the_reader_knows(
    messages: list[tuple[str, str]], prompt: str
) -> None:
    chat = [ChatMessage(role=role, content=content) for role, content in messages]
    assert messages_to_prompt(chat) == prompt


def test_the_trained_reader_alone_gets_them() -> None:
    chat = [ChatMessage(role="user", content="Who?")]

    def rendered(own: ZTokenLLM) -> str:
        assert own.messages_to_prompt is not None
        return own.messages_to_prompt(chat)

    assert rendered(ZTokenLLM()) == messages_to_prompt(chat)
    assert rendered(ZTokenLLM(adapter=None)) == generic(chat)
    own = ZTokenLLM(messages_to_prompt=lambda messages: "mine")
    assert rendered(own) == "mine"
