"""The LlamaIndex objects, on the shipped checkpoint: what reaches the LLM and what stays."""

import asyncio
import gc
import warnings

import faiss
import numpy as np
import pytest
from llama_index.core import Document, PromptHelper, StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.prompts.default_prompts import (
    DEFAULT_TEXT_QA_PROMPT,
    DEFAULT_TEXT_QA_PROMPT_TMPL,
)
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import (
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)
from llama_index.core.utils import get_tokenizer, set_global_tokenizer
from llama_index.vector_stores.faiss import FaissVectorStore

from ztok_rag import default_embedding
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.prompts import training_templates
from ztok_rag.codec.reader import ZReader
from ztok_rag.errors import HandleError, ZtokError
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.node import ZTokenNode
from ztok_rag.llamaindex.postprocessor import ZTokenPostprocessor
from ztok_rag.llamaindex.token_counting import HandleTokenizer
from ztok_rag.selection.embedding import SentenceEmbedder
from ztok_rag.storage.handle import decode_handle, encode_handle, has_handles, split_prompt
from ztok_rag.storage.store import ZStore

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")

LIGHTHOUSE = (
    "The lighthouse on Brannock Point was built in 1871 by the engineer Ada Merrow. Its lamp "
    "burned whale oil until 1902, when the harbour board paid for an electric arc."
)
BAKERY = (
    "The bakery in Tolvan Street opens at five in the morning. Its owner, Piet Larsen, bakes rye "
    "bread in a wood oven that his grandfather brought over the mountains."
)
FORGED = "⟦ztok:3:QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo⟧"


@pytest.fixture
def postprocessor(compressor: ZCompressor, store: ZStore) -> ZTokenPostprocessor:
    return ZTokenPostprocessor(compressor=compressor, store=store)


@pytest.fixture
def llm(reader: ZReader, store: ZStore) -> ZTokenLLM:
    return ZTokenLLM(reader=reader, store=store, max_new_tokens=6)


def retrieved(*nodes: TextNode | Node) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1.0 - i / 10) for i, node in enumerate(nodes)]


def query_engine(
    llm: ZTokenLLM,
    postprocessor: ZTokenPostprocessor,
    *docs: Document,
    embed_model: BaseEmbedding | None = None,
    **kwargs: object,
) -> RetrieverQueryEngine:
    embed_model = embed_model or MockEmbedding(embed_dim=4)
    index = VectorStoreIndex.from_documents(list(docs), embed_model=embed_model)
    return index.as_query_engine(  # type: ignore[return-value]
        llm=llm, node_postprocessors=[postprocessor], similarity_top_k=len(docs), **kwargs
    )


DOCUMENTS = (
    Document(text=LIGHTHOUSE, id_="lighthouse", metadata={"place": "Brannock Point"}),
    Document(text=BAKERY, id_="bakery", metadata={"place": "Tolvan Street"}),
)


# -- the whole path


def test_whole_path_on_faiss_with_the_default_embedding(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor, prompts: list[str]
) -> None:
    embedding = default_embedding()
    storage = StorageContext.from_defaults(
        vector_store=FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))
    )
    index = VectorStoreIndex.from_documents(
        list(DOCUMENTS), embed_model=embedding, storage_context=storage
    )
    engine = index.as_query_engine(llm=llm, node_postprocessors=[postprocessor], similarity_top_k=1)
    response = engine.query("Who built the lighthouse?")

    (prompt,) = prompts
    assert has_handles(prompt)
    assert "whale oil" not in prompt
    assert "place: Brannock Point" in prompt
    (source,) = response.source_nodes
    assert source.node.ref_doc_id == "lighthouse"
    assert source.text == LIGHTHOUSE
    assert source.score is not None and 0 < source.score <= 1.001
    assert response.metadata == {source.node_id: {"place": "Brannock Point"}}


def test_second_query_compresses_nothing(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor, store: ZStore
) -> None:
    engine = query_engine(llm, postprocessor, *DOCUMENTS, embed_model=default_embedding())
    engine.query("Who built the lighthouse?")
    first = postprocessor.stats
    assert (first.nodes, first.compressed, first.hits) == (2, 2, 0)
    gc.collect()  # else the garbage of the tests before may be collected within the time taken
    engine.query("When does the bakery open?")
    second = postprocessor.stats
    assert (second.nodes, second.compressed, second.hits) == (4, 2, 2)
    assert store.stats.compressed == 2
    assert second.ms - first.ms < first.ms / 3  # the first time, two texts were compressed


def test_retriever_and_postprocessor_embed_a_question_once(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    embed = SentenceEmbedder._embed

    def noted(self: SentenceEmbedder, texts: list[str]) -> list[list[float]]:
        embedded.extend(texts)
        return embed(self, texts)

    monkeypatch.setattr(SentenceEmbedder, "_embed", noted)
    engine = query_engine(llm, postprocessor, *DOCUMENTS, embed_model=default_embedding())
    question = "Which cat sleeps behind the oven of the bakery?"
    engine.query(question)
    assert embedded.count(question) == 1
    vector = default_embedding().get_query_embedding(question)
    vector[0] = 9.0
    assert default_embedding().get_query_embedding(question)[0] != 9.0


def test_all_chunks_reach_the_reader_as_z_tokens_in_one_call(
    llm: ZTokenLLM,
    postprocessor: ZTokenPostprocessor,
    compressor: ZCompressor,
    store: ZStore,
    prompts: list[str],
) -> None:
    question = "When does the bakery open?"
    query_engine(llm, postprocessor, *DOCUMENTS).query(question)
    (prompt,) = prompts
    segments = split_prompt(
        prompt, store.secret, compressor.fingerprint, compressor.model.token_code
    )
    expected, _ = postprocessor.selector.compose(question, [LIGHTHOUSE, BAKERY], postprocessor.rate)
    sequences = [segment for segment in segments if not isinstance(segment, str)]
    assert set(sequences) == set(expected)
    text = "".join(segment for segment in segments if isinstance(segment, str))
    assert "When does the bakery open?" in text
    assert not any(word in text for word in ("whale", "Piet", "Merrow", "oven"))


def test_async_query(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor, prompts: list[str]
) -> None:
    engine = query_engine(llm, postprocessor, *DOCUMENTS)

    async def ask_both() -> list[str]:
        questions = ["Who built the lighthouse?", "When does the bakery open?"]
        return [str(r) for r in await asyncio.gather(*map(engine.aquery, questions))]

    answers = asyncio.run(ask_both())
    assert answers == [
        str(engine.query(q)) for q in ("Who built the lighthouse?", "When does the bakery open?")
    ]
    assert all(map(has_handles, prompts))
    assert postprocessor.stats.compressed == 2


def test_streamed_answer_is_the_answer(llm: ZTokenLLM, postprocessor: ZTokenPostprocessor) -> None:
    question = "Who built the lighthouse?"
    # One document: the order of equally good ones differs from index to index.
    document = DOCUMENTS[0]
    whole = str(query_engine(llm, postprocessor, document).query(question))
    streaming = query_engine(llm, postprocessor, document, streaming=True).query(question)
    pieces = list(streaming.response_gen)
    assert "".join(pieces) == whole
    assert whole == whole.strip()


# -- the nodes


def test_source_nodes_keep_everything(
    postprocessor: ZTokenPostprocessor, compressor: ZCompressor, store: ZStore
) -> None:
    node = TextNode(
        id_="n1",
        text=LIGHTHOUSE,
        metadata={"page": 3, "secret": "x"},
        excluded_llm_metadata_keys=["secret"],
        start_char_idx=10,
        end_char_idx=10 + len(LIGHTHOUSE),
        embedding=[0.5, 0.5],
    )
    (result,) = postprocessor.postprocess_nodes(retrieved(node))
    assert isinstance(result.node, ZTokenNode)
    assert (result.node_id, result.score, result.text) == ("n1", 1.0, LIGHTHOUSE)
    assert result.get_content() == LIGHTHOUSE
    for mode in (MetadataMode.NONE, MetadataMode.EMBED, MetadataMode.ALL):
        assert result.node.get_content(mode) == node.get_content(mode)
    for name in type(node).model_fields:
        assert getattr(result.node, name) == getattr(node, name)

    shown = result.node.get_content(MetadataMode.LLM)
    assert shown == node.get_content(MetadataMode.LLM).replace(LIGHTHOUSE, result.node.llm_text)
    assert shown.startswith("page: 3\n") and "secret" not in shown
    blocks = result.node.get_content_blocks(MetadataMode.LLM)
    assert [block.text for block in blocks] == ["page: 3", result.node.llm_text]  # type: ignore[attr-defined]
    z = decode_handle(result.node.llm_text, store.secret, compressor.model.token_code)
    assert z.spans[-1, 1] == len(LIGHTHOUSE)
    assert node.text == LIGHTHOUSE


def test_node_survives_serialization(postprocessor: ZTokenPostprocessor) -> None:
    (result,) = postprocessor.postprocess_nodes(retrieved(TextNode(text=BAKERY)))
    again = ZTokenNode.from_dict(result.node.to_dict())
    assert again.get_content(MetadataMode.LLM) == result.node.get_content(MetadataMode.LLM)


def test_new_text_drops_the_handle(postprocessor: ZTokenPostprocessor) -> None:
    (result,) = postprocessor.postprocess_nodes(retrieved(TextNode(text=BAKERY)))
    result.node.set_content(f"shortened {FORGED}")
    assert result.text == f"shortened {FORGED}"
    assert not has_handles(result.node.get_content(MetadataMode.LLM))


def test_processing_twice_changes_nothing(postprocessor: ZTokenPostprocessor) -> None:
    once = postprocessor.postprocess_nodes(retrieved(TextNode(text=BAKERY)))
    assert postprocessor.postprocess_nodes(once) == once
    assert postprocessor.stats.compressed == 1


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_empty_node_stays_as_it_is(postprocessor: ZTokenPostprocessor, text: str) -> None:
    nodes = retrieved(TextNode(text=text), TextNode(text=BAKERY))
    empty, full = postprocessor.postprocess_nodes(nodes)
    assert empty.node is nodes[0].node
    assert isinstance(full.node, ZTokenNode)
    assert postprocessor.stats.nodes == 1
    assert postprocessor.postprocess_nodes([]) == []


def test_query_over_an_empty_node_answers(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor
) -> None:
    nodes = postprocessor.postprocess_nodes(retrieved(TextNode(text=""), TextNode(text=BAKERY)))
    response = get_response_synthesizer(llm=llm).synthesize("When does the bakery open?", nodes)
    assert response.source_nodes == nodes


def test_nodes_that_are_not_text_stay_as_they_are(postprocessor: ZTokenPostprocessor) -> None:
    picture = Node(
        text_resource=MediaResource(text="caption"), image_resource=MediaResource(data=b"aGk=")
    )
    nodes = retrieved(ImageNode(text="caption", image="aGk="), picture)
    assert postprocessor.postprocess_nodes(nodes) == nodes


def test_text_of_a_generic_node_is_compressed(postprocessor: ZTokenPostprocessor) -> None:
    (result,) = postprocessor.postprocess_nodes(retrieved(Document(text=BAKERY, id_="d")))
    assert (result.node_id, result.text) == ("d", BAKERY)
    assert has_handles(result.node.get_content(MetadataMode.LLM))


def test_chunk_longer_than_the_context_is_split_and_not_cut(
    postprocessor: ZTokenPostprocessor, compressor: ZCompressor, store: ZStore
) -> None:
    longest = compressor.reader.max_positions
    text = " ".join(f"Entry {i}: {BAKERY}" for i in range(longest // 30))
    assert compressor.count_tokens(text) > longest
    (result,) = postprocessor.postprocess_nodes(retrieved(TextNode(text=text)))
    handles = result.node.get_content(MetadataMode.LLM).split(" ")
    parts = [decode_handle(handle, store.secret, compressor.model.token_code) for handle in handles]
    spans = np.concatenate([z.spans for z in parts])
    assert spans[0, 0] == 0
    assert spans[-1, 1] == len(text)
    assert (spans[1:, 0] <= spans[:-1, 1]).all(), "no gaps"
    assert len(parts) > 1 and max(map(len, parts)) <= 512
    source_tokens = sum(z.source_tokens for z in parts)
    assert source_tokens == compressor.count_tokens(text)
    assert source_tokens / len(spans) == pytest.approx(4.0, rel=0.1)


def test_unreadable_entry_does_not_fail_a_query(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor, store: ZStore
) -> None:
    engine = query_engine(llm, postprocessor, *DOCUMENTS)
    answer = str(engine.query("Who built the lighthouse?"))
    for key in list(store._cache):
        store._cache[key] = store._cache[key][:-5]
    with pytest.warns(UserWarning, match="compressed again"):
        assert str(engine.query("Who built the lighthouse?")) == answer
    assert store.stats.corrupt == 2


def test_settings_serialize_without_the_model(postprocessor: ZTokenPostprocessor) -> None:
    postprocessor.rate = 8.0
    again = ZTokenPostprocessor.from_dict(postprocessor.to_dict())
    assert again.rate == 8.0


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (0.25, r"rate=0\.25: did you mean rate=4\?"),
        (0.3, r"did you mean rate=3\.33\?"),
        (0.0, "at least 1, not 0"),
        (-4.0, "at least 1, not -4"),
        (float("nan"), "at least 1, not nan"),
    ],
)
def test_rate_below_one_is_refused_with_what_is_meant(rate: float, message: str) -> None:
    with pytest.raises(ZtokError, match=message):
        ZTokenPostprocessor(rate=rate)
    postprocessor = ZTokenPostprocessor()
    postprocessor.rate = rate
    with pytest.raises(ZtokError, match=message):
        postprocessor.postprocess_nodes([], query_str="Who?")


# -- handles that must not be read


def test_handle_like_text_in_a_document_is_harmless(
    llm: ZTokenLLM,
    postprocessor: ZTokenPostprocessor,
    compressor: ZCompressor,
    store: ZStore,
    prompts: list[str],
) -> None:
    (z,) = compressor.compress([LIGHTHOUSE], 4.0)
    genuine = encode_handle(z, store.secret)
    documents = [
        Document(
            text=f"{BAKERY} {text}",
            metadata={"note": text},
            text_template="{metadata_str}\n{content}",
        )
        for text in (genuine, FORGED, "⟦ztok:")
    ]
    query_engine(llm, postprocessor, *documents).query("When does the bakery open?")
    sequences = [
        segment
        for prompt in prompts
        for segment in split_prompt(
            prompt, store.secret, compressor.fingerprint, compressor.model.token_code
        )
        if not isinstance(segment, str)
    ]
    assert len(sequences) == 3
    assert z not in sequences


def test_handle_like_text_in_nodes_left_as_they_are_is_escaped(
    postprocessor: ZTokenPostprocessor,
) -> None:
    nodes = retrieved(
        TextNode(text="", metadata={"note": FORGED}),
        ImageNode(text=FORGED, image="aGk=", id_="image"),
    )
    empty, image = postprocessor.postprocess_nodes(nodes)
    assert not has_handles(empty.node.get_content(MetadataMode.LLM))
    assert not has_handles(image.node.get_content(MetadataMode.LLM))
    assert (image.node_id, image.text) == ("image", FORGED)
    assert empty.metadata == {"note": FORGED}


def test_handle_like_text_in_a_question_is_refused(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor
) -> None:
    engine = query_engine(llm, postprocessor, *DOCUMENTS)
    with pytest.raises(HandleError, match="store"):
        engine.query(f"What does {FORGED} mean?")


def test_handles_of_another_store_are_refused(
    llm: ZTokenLLM, compressor: ZCompressor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ZStore(tmp_path_factory.mktemp("other")) as other:
        foreign = ZTokenPostprocessor(compressor=compressor, store=other)
        with pytest.raises(HandleError, match="the same store"):
            query_engine(llm, foreign, *DOCUMENTS).query("Who built the lighthouse?")


# -- the LLM by itself


def test_completion_of_plain_text_is_the_readers(llm: ZTokenLLM, reader: ZReader) -> None:
    prompt = "The capital of France is"
    (expected,) = reader.generate([prompt], max_new_tokens=6)
    response = llm.complete(prompt)
    assert response.text == expected.strip()
    assert response.raw["usage"]["prompt_tokens"] == reader.count_tokens(prompt)


def test_stop_and_length_arguments_are_heeded(llm: ZTokenLLM, reader: ZReader) -> None:
    text = llm.complete("Count: one, two, three,", max_new_tokens=12).text
    assert reader.count_tokens(text) > 6
    word = text.split()[1]
    stopped = llm.complete("Count: one, two, three,", max_new_tokens=12, stop=[word]).text
    assert word not in stopped
    assert text.startswith(stopped)


def test_completion_to_prompt_is_applied_once(reader: ZReader, store: ZStore) -> None:
    llm = ZTokenLLM(
        reader=reader, store=store, max_new_tokens=6, completion_to_prompt="Q: {}\nA:".format
    )
    plain = ZTokenLLM(reader=reader, store=store, max_new_tokens=6)
    assert llm.complete("Hi").text == plain.complete("Q: Hi\nA:").text
    assert llm.complete("Q: Hi\nA:", formatted=True).text == plain.complete("Q: Hi\nA:").text


def test_chat_and_streamed_chat_agree(llm: ZTokenLLM) -> None:
    messages = [ChatMessage(role="user", content="Name a colour.")]
    whole = llm.chat(messages).message.content
    assert list(llm.stream_chat(messages))[-1].message.content == whole


def test_async_completion_and_stream_agree(llm: ZTokenLLM) -> None:
    async def both() -> tuple[str, str]:
        whole = (await llm.acomplete("The capital of France is")).text
        pieces = [
            r.delta or "" async for r in await llm.astream_complete("The capital of France is")
        ]
        return whole, "".join(pieces)

    whole, streamed = asyncio.run(both())
    assert whole == streamed


# -- counting


def test_prompt_helper_neither_cuts_nor_overcounts_handles(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor, compressor: ZCompressor, store: ZStore
) -> None:
    chunks = [f"{BAKERY} Number {i}." for i in range(12)]
    nodes = postprocessor.postprocess_nodes(retrieved(*[TextNode(text=c) for c in chunks]))
    handles = [item.node.get_content(MetadataMode.LLM) for item in nodes]
    z_tokens = sum(
        len(decode_handle(handle, store.secret, compressor.model.token_code)) for handle in handles
    )
    tokenizer = get_tokenizer()
    assert isinstance(tokenizer, HandleTokenizer)
    template = len(tokenizer(DEFAULT_TEXT_QA_PROMPT.template))
    # Room for all the Z-tokens, though not for a third of the handles' characters.
    window = template + z_tokens + 50
    assert z_tokens < len(tokenizer.inner("".join(handles))) / 3
    helper = PromptHelper(context_window=window, num_output=8)
    (packed,) = helper.repack(DEFAULT_TEXT_QA_PROMPT, handles)
    assert packed == "\n\n".join(handles)

    # Room for some: cut between handles only.
    tight = PromptHelper(context_window=template + z_tokens // 2 + 13, num_output=8)
    pieces = tight.repack(DEFAULT_TEXT_QA_PROMPT, handles)
    assert len(pieces) > 1
    seen = [
        z
        for piece in pieces
        for z in split_prompt(
            piece, store.secret, compressor.fingerprint, compressor.model.token_code
        )
        if not isinstance(z, str)
    ]
    assert {encode_handle(z, store.secret) for z in seen} == set(handles)


def test_counting_of_plain_text_is_left_as_it_was(llm: ZTokenLLM) -> None:
    tokenizer = get_tokenizer()
    assert isinstance(tokenizer, HandleTokenizer)
    assert len(tokenizer(BAKERY)) == len(tokenizer.inner(BAKERY))
    assert not isinstance(tokenizer.inner, HandleTokenizer)


def test_counting_survives_a_tokenizer_set_later(
    llm: ZTokenLLM, postprocessor: ZTokenPostprocessor, prompts: list[str]
) -> None:
    set_global_tokenizer(str.split)
    with pytest.warns(UserWarning, match=r"global tokenizer was replaced.*make those again"):
        query_engine(llm, postprocessor, *DOCUMENTS).query("Who built the lighthouse?")
    tokenizer = get_tokenizer()
    assert isinstance(tokenizer, HandleTokenizer)
    assert tokenizer.inner == str.split
    assert len(prompts) == 1


def test_token_counting_handler_counts_z_tokens(
    reader: ZReader, compressor: ZCompressor, store: ZStore, postprocessor: ZTokenPostprocessor
) -> None:
    counter = TokenCountingHandler()
    llm = ZTokenLLM(
        reader=reader, store=store, max_new_tokens=6, callback_manager=CallbackManager([counter])
    )
    nodes = postprocessor.postprocess_nodes(retrieved(TextNode(text=BAKERY)))
    handle = nodes[0].node.get_content(MetadataMode.LLM)
    z = decode_handle(handle, store.secret, compressor.model.token_code)
    llm.complete(f"{handle}\n\nQuestion: When?\nAnswer:")
    expected = reader.count_tokens([z, "\n\nQuestion: When?\nAnswer:"])
    assert counter.prompt_llm_token_count == expected
    assert expected == len(z) + reader.count_tokens("\n\nQuestion: When?\nAnswer:") * 2


# -- defaults


def test_objects_without_arguments_share_one_model_and_store(
    compressor: ZCompressor, store: ZStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ztok_rag.llamaindex.llm", "ztok_rag.llamaindex.postprocessor"):
        monkeypatch.setattr(f"{module}.default_compressor", lambda: compressor)
        monkeypatch.setattr(f"{module}.default_store", lambda: store)
    postprocessor, llm = ZTokenPostprocessor(), ZTokenLLM()
    assert llm.reader.model is postprocessor.compressor.model
    assert llm.store is postprocessor.store
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ZTokenPostprocessor().compressor is compressor


def test_without_selection_or_a_question_all_nodes_are_at_the_rate(
    postprocessor: ZTokenPostprocessor, compressor: ZCompressor, store: ZStore
) -> None:
    blind = ZTokenPostprocessor(rate=6, query_aware=False, compressor=compressor, store=store)
    nodes = [NodeWithScore(node=TextNode(text=LIGHTHOUSE), score=0.5)]
    expected = compressor.compress([LIGHTHOUSE], 6)[0]
    for item in (blind, postprocessor.model_copy(update={"rate": 6.0})):
        (shown,) = item.postprocess_nodes(nodes, **({"query_str": "Who?"} if item is blind else {}))
        handle = shown.node.get_content(MetadataMode.LLM)
        assert decode_handle(handle, store.secret, compressor.model.token_code) == expected


def test_training_knows_the_prompt_that_query_engines_send() -> None:
    sent = DEFAULT_TEXT_QA_PROMPT_TMPL.replace("{context_str}", "{context}")
    assert sent.replace("{query_str}", "{question}") in training_templates()
