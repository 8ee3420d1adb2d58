"""How `ZTokenLLM` reads handles: looking twice, asking first, copying, and naming its sources."""

from __future__ import annotations

import asyncio

import pytest
from conftest import BAKERY, PASSAGE, Recorder
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.embeddings import MockEmbedding

from ztok_rag import ZCompressor, ZStore, ZTokenLLM
from ztok_rag.selection.look_twice import LookTwice
from ztok_rag.selection.sentences import split_sentences
from ztok_rag.storage.handle import encode_handles, split_prompt

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")

ASKED = "\n\nQuestion: Who was the last keeper?\nAnswer:"
ANSWER = "Tomas Berg"


def make(compressor: ZCompressor, store: ZStore, **arguments: object) -> ZTokenLLM:
    return ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=8, **arguments)


def prompt(compressor: ZCompressor, store: ZStore, *texts: str, rate: float = 4) -> str:
    zs = compressor.compress(texts, rate)
    return "\n\n".join(encode_handles(z, store.secret) for z in zs) + ASKED


def test_sources_are_where_the_answer_stands(compressor: ZCompressor, store: ZStore) -> None:
    llm = make(compressor, store)
    asked = prompt(compressor, store, BAKERY, PASSAGE)
    response = llm.complete(asked)
    start = PASSAGE.index(ANSWER)
    wanted = [{"handle": 1, "start": start, "end": start + len(ANSWER)}]
    assert response.text.rstrip(".") == ANSWER
    assert response.additional_kwargs["sources"] == wanted

    *pieces, last = llm.stream_complete(asked)
    assert (last.text, last.delta) == (response.text, "")
    assert last.additional_kwargs["sources"] == wanted
    assert "".join(piece.delta or "" for piece in pieces) == response.text
    later = asyncio.run(llm.acomplete(asked))
    assert later.additional_kwargs["sources"] == wanted
    chatted = llm.chat([ChatMessage(role="user", content=asked)])
    assert "sources" in chatted.message.additional_kwargs
    assert llm.complete("The capital of France is").additional_kwargs["sources"] == []


def test_long_context_is_looked_at_twice(
    compressor: ZCompressor, store: ZStore, recorder: Recorder
) -> None:
    texts = [f"Entry {number}. {BAKERY}" for number in range(8)]
    texts[5] = PASSAGE
    asked = prompt(compressor, store, *texts, rate=2)
    held = sum(map(compressor.count_tokens, texts))
    for look_twice, most in (
        (True, 0.5),
        (LookTwice(share=0.3), 0.3),
        (LookTwice(from_tokens=10_000), 1.0),
        (False, 1.0),
    ):
        llm = make(compressor, store, look_twice=look_twice)
        response = llm.complete(asked)
        assert ANSWER in response.text
        assert [source["handle"] for source in response.additional_kwargs["sources"]] == [5]
        splice = recorder.splices[-1]
        assert splice.handles == 8
        # Spans are rounded up for each text, and to windows.
        assert splice.z_tokens <= most * held + 4 * len(texts)
        assert (splice.z_tokens == (held + 8) // 2) or most < 1 or splice.z_tokens > 0.45 * held
        assert response.raw["usage"]["prompt_tokens"] == splice.prompt_tokens
        again = ZTokenLLM.from_dict(llm.to_dict())
        assert again.look_twice == look_twice


def test_positions_of_both_looks_are_counted(
    compressor: ZCompressor, store: ZStore, recorder: Recorder
) -> None:
    asked = prompt(compressor, store, *[PASSAGE] * 8, rate=2)
    reader, look = compressor.reader, LookTwice(share=0.3)
    segments = split_prompt(
        asked, store.secret, compressor.fingerprint, compressor.model.token_code
    )
    llm = make(compressor, store, look_twice=look)
    looks = look.read(reader, segments, scorer=llm.scorer).looks
    assert len(looks) == 2
    llm.complete(asked)
    assert recorder.splices[0].prompt_tokens == sum(map(reader.count_tokens, looks))


class CountingEmbedding(MockEmbedding):
    """Counts the texts that it embeds."""

    texts: int = 0

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self.texts += len(texts)
        return super()._get_text_embeddings(texts)


def test_sentences_are_embedded_once_and_for_a_second_look_only(
    compressor: ZCompressor, store: ZStore
) -> None:
    asked = prompt(compressor, store, BAKERY, PASSAGE)
    embed_model = CountingEmbedding(embed_dim=8)
    make(compressor, store, embed_model=embed_model, look_twice=False).complete(asked)
    assert embed_model.texts == 0
    make(compressor, store, embed_model=embed_model).complete(asked)
    sentences = len(split_sentences(BAKERY)) + len(split_sentences(PASSAGE))
    assert embed_model.texts == sentences
    make(compressor, store, embed_model=embed_model).complete(asked)  # the store has them
    assert embed_model.texts == sentences


def test_the_plain_base_looks_once(
    compressor: ZCompressor, store: ZStore, recorder: Recorder
) -> None:
    asked = prompt(compressor, store, *[PASSAGE] * 8, rate=4)
    make(compressor, store, adapter=None).complete(asked)
    zs = compressor.compress([PASSAGE], 4)
    assert recorder.splices[0].z_tokens == 8 * len(zs[0])


def test_how_to_answer_reaches_the_reader(compressor: ZCompressor, store: ZStore) -> None:
    asked = prompt(compressor, store, PASSAGE)
    (z,) = compressor.compress([PASSAGE], 4)
    reader = compressor.reader
    for arguments in (
        {"ask_first": False}, {"copying": False}, {"copying": True}, {"min_new_tokens": 8},
        {"min_new_tokens": 8, "no_repeat_ngram_size": 1},
    ):  # fmt: skip
        llm = make(compressor, store, look_twice=False, **arguments)
        given = {
            ("copy" if name == "copying" else name): value for name, value in arguments.items()
        }
        (wanted,) = reader.generate([[z, ASKED]], max_new_tokens=8, **given)  # type: ignore[arg-type]
        response = llm.complete(asked)
        assert response.text == wanted.strip()
        if least := arguments.get("min_new_tokens"):
            plain = make(
                compressor, store, look_twice=False, no_repeat_ngram_size=llm.no_repeat_ngram_size
            )
            assert plain.complete(asked, min_new_tokens=least).text == response.text
        positions = reader.count_tokens([z, ASKED], ask_first=llm.ask_first)
        assert response.raw["usage"]["prompt_tokens"] == positions
        assert ZTokenLLM.from_dict(llm.to_dict()).copying == llm.copying


def test_speculation_reaches_the_reader(compressor: ZCompressor, store: ZStore) -> None:
    asked = prompt(compressor, store, PASSAGE)
    passes = []
    for speculate in (False, True):
        llm = make(compressor, store, speculate=speculate)
        before = llm.reader.passes
        streamed = "".join(str(part.delta) for part in llm.stream_complete(asked))
        passes.append(llm.reader.passes - before)
        assert llm.complete(asked).text == streamed
        assert llm.reader.passes == before + 2 * passes[-1]
    assert passes[1] < passes[0]


def test_sources_of_a_text_in_several_handles(compressor: ZCompressor, store: ZStore) -> None:
    text = f"{BAKERY} {PASSAGE}"
    (z,) = compressor.compress([text], 2)
    handles = encode_handles(z, store.secret, longest=20)
    assert handles.count(" ") > 1
    response = make(compressor, store).complete(handles + ASKED)
    (source,) = response.additional_kwargs["sources"]
    assert text[source["start"] : source["end"]] == ANSWER
