"""Follow-up questions of chats, as LlamaIndex's chat engines have them rewritten."""

import asyncio

import numpy as np
import pytest
from llama_index.core.chat_engine.condense_plus_context import DEFAULT_CONDENSE_PROMPT_TEMPLATE
from llama_index.core.chat_engine.condense_question import DEFAULT_TEMPLATE

from ztok_rag import ZCompressor, ZTokenLLM
from ztok_rag.errors import ZtokError
from ztok_rag.llamaindex.follow_ups import FollowUp, Turn
from ztok_rag.selection.embedding import default_embedder

HISTORY = (
    "user: When does the bakery open?\nassistant: At six.\n"
    "user: Who built the lighthouse on Brannock Point?\nassistant: Ada Merrow"
)
FIRST = Turn("When does the bakery open?", "When does the bakery open? At six.")
BUILT = "Who built the lighthouse on Brannock Point?"
TURN = f"{BUILT} Ada Merrow."
TURNS = (FIRST, Turn(BUILT, TURN))
TEMPLATES = (DEFAULT_CONDENSE_PROMPT_TEMPLATE, DEFAULT_TEMPLATE)


@pytest.fixture(scope="module")
def llm(compressor: ZCompressor) -> ZTokenLLM:
    return ZTokenLLM(reader=compressor.reader)


@pytest.mark.parametrize("template", TEMPLATES)
def test_takes_a_prompt_apart(template: str) -> None:
    prompt = template.format(chat_history=HISTORY, question="In which\n year?")
    assert FollowUp.of(prompt) == FollowUp(TURNS, "In which year?")
    assert FollowUp.of(f"{prompt.rstrip()}\nAnswer:") == FollowUp(TURNS, "In which year?")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Standalone question:",
        "Follow Up Input: Why?\nStandalone question:",
        "Chat History:\nuser: Who?\nFollow Up Input: \nStandalone question:",
        "Context: a chat history.\n\nQuestion: Who rowed for help?\nAnswer:",
    ],
)
def test_leaves_other_prompts_alone(prompt: str) -> None:
    assert FollowUp.of(prompt) is None


@pytest.mark.parametrize(
    ("history", "turns"),
    [
        ("", []),
        ("user: \nassistant: ", []),
        ("assistant: How can I help?", [("How can I help?", "How can I help?")]),
        ("user: Who rowed?", [("Who rowed?", "Who rowed?")]),
        (
            "Human: When?\nAI: At six\nHuman: Who rowed?\nAI: Finch",
            [("When?", "When? At six."), ("Who rowed?", "Who rowed? Finch.")],
        ),
        (
            "user: Is it\nopen?\nassistant: Yes,\nuntil user: 6",
            [("Is it open?", "Is it open? Yes, until user: 6.")],
        ),
    ],
)
def test_the_turns_of_histories(history: str, turns: list[tuple[str, str]]) -> None:
    prompt = DEFAULT_TEMPLATE.format(chat_history=history, question="Why?")
    assert FollowUp.of(prompt) == FollowUp(tuple(Turn(*turn) for turn in turns), "Why?")


@pytest.mark.parametrize(
    ("question", "goes_on"),
    [
        ("In which year?", True),
        ("What did Ada Merrow build it of?", True),
        ("What is photosynthesis in algae?", False),
    ],
)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_question_goes_on_from_the_turn_before_or_stands_alone(
    llm: ZTokenLLM, template: str, question: str, goes_on: bool
) -> None:
    passes = llm.reader.passes
    response = llm.complete(template.format(chat_history=HISTORY, question=question))
    assert response.text == (f"{TURN} {question}" if goes_on else question)
    assert llm.reader.passes == passes


def test_the_first_question_stands_alone(compressor: ZCompressor) -> None:
    rarity = compressor.model.token_code.rarity
    asked = FollowUp((), "In which year?")
    assert asked.standalone(default_embedder(), compressor.tokenizer, rarity) == asked.question
    alike = np.ones_like(rarity)
    far = FollowUp(TURNS, "What is photosynthesis in algae?")
    assert far.standalone(default_embedder(), compressor.tokenizer, alike) == far.question


def test_a_chain_of_follow_ups_goes_back_to_its_subject(llm: ZTokenLLM) -> None:
    history = f"{HISTORY}\nuser: In which year?\nassistant: 1871"
    response = llm.complete(TEMPLATES[0].format(chat_history=history, question="And of what?"))
    assert response.text == f"{TURN} In which year? 1871. And of what?"


def test_streams_and_async_calls_say_the_same(llm: ZTokenLLM) -> None:
    prompt = TEMPLATES[0].format(chat_history=HISTORY, question="In which year?")
    whole = llm.complete(prompt).text

    async def ask() -> tuple[str, list[str]]:
        pieces = await llm.astream_complete(prompt)
        return (await llm.acomplete(prompt)).text, [p.delta or "" async for p in pieces]

    text, pieces = asyncio.run(ask())
    assert text == "".join(pieces) == whole
    streamed = list(llm.stream_complete(prompt))
    assert "".join(p.delta or "" for p in streamed) == streamed[-1].text == whole
    assert streamed[-1].additional_kwargs["sources"] == []


def test_the_plain_base_writes_by_itself(compressor: ZCompressor) -> None:
    plain = ZTokenLLM(reader=compressor.reader, adapter=None, max_new_tokens=4)
    prompt = TEMPLATES[0].format(chat_history=HISTORY, question="In which year?")
    passes = compressor.reader.passes
    assert plain.complete(prompt).text != f"{TURN} In which year?"
    assert compressor.reader.passes > passes


def test_unknown_arguments_are_refused(llm: ZTokenLLM) -> None:
    prompt = TEMPLATES[0].format(chat_history=HISTORY, question="Why?")
    with pytest.raises(ZtokError, match="temperature"):
        llm.complete(prompt, temperature=1.0)
