"""Every way LlamaIndex sends retrieved text to an LLM, with Z-tokens in the text's place."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Recorder
from llama_index.core import Document, Settings, VectorStoreIndex, get_response_synthesizer
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import LongContextReorder, SimilarityPostprocessor
from llama_index.core.query_engine import CitationQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.tools import QueryEngineTool
from llama_index.core.utils import get_tokenizer, set_global_tokenizer
from pydantic import BaseModel

from ztok_rag import (
    ZCompressor,
    ZReader,
    ZStore,
    ZTokenLLM,
    ZTokenPostprocessor,
    ZTokenTransform,
    default_embedding,
)
from ztok_rag.errors import DataError, ZtokError
from ztok_rag.evaluation import read_rag_dataset, write_rag_dataset
from ztok_rag.selection.budget import BUDGET_RATES, cost, plan_rates
from ztok_rag.storage.handle import has_handles, split_prompt

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")

FACT = (
    "The lighthouse on Brannock Point was built in 1871 by the engineer Ada Merrow. Its lamp "
    "burned whale oil until 1902, when the harbour board paid for an electric arc."
)
QUESTION = "In what year was the lighthouse built?"
ANSWER = "1871"
PRIVATE = ("1871", "whale", "1902", "harbour board")


@pytest.fixture
def llm(reader: ZReader, store: ZStore) -> ZTokenLLM:
    return ZTokenLLM(reader=reader, store=store, max_new_tokens=8)


@pytest.fixture
def lossless(compressor: ZCompressor, store: ZStore) -> ZTokenPostprocessor:
    """At rate 1 Z-tokens say all that the text does, so that answers test the path alone."""
    return ZTokenPostprocessor(rate=1.0, compressor=compressor, store=store)


@pytest.fixture
def index() -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(
        [Document(text=FACT, id_="lighthouse")], embed_model=MockEmbedding(embed_dim=4)
    )


def check(recorder: Recorder, compressor: ZCompressor, store: ZStore) -> None:
    """The prompts that carry the context do so as Z-tokens of the text, and in no other way."""
    expected = compressor.compress([FACT], 1.0)
    with_context = [prompt for prompt in recorder.prompts if has_handles(prompt)]
    assert with_context
    for prompt in with_context:
        segments = split_prompt(
            prompt, store.secret, compressor.fingerprint, compressor.model.token_code
        )
        assert [s for s in segments if not isinstance(s, str)] == expected
        text = "".join(s for s in segments if isinstance(s, str))
        assert not [word for word in PRIVATE if word in text]


@pytest.mark.parametrize(
    "mode",
    [
        ResponseMode.COMPACT,
        ResponseMode.REFINE,
        ResponseMode.TREE_SUMMARIZE,
        ResponseMode.SIMPLE_SUMMARIZE,
        ResponseMode.ACCUMULATE,
        ResponseMode.COMPACT_ACCUMULATE,
    ],
)
def test_response_modes(
    mode: ResponseMode,
    index: VectorStoreIndex,
    llm: ZTokenLLM,
    lossless: ZTokenPostprocessor,
    compressor: ZCompressor,
    store: ZStore,
    recorder: Recorder,
) -> None:
    engine = index.as_query_engine(llm=llm, node_postprocessors=[lossless], response_mode=mode)
    assert ANSWER in str(engine.query(QUESTION))
    check(recorder, compressor, store)
    assert ANSWER in str(asyncio.run(engine.aquery(QUESTION)))
    check(recorder, compressor, store)


def test_modes_that_send_no_context(
    index: VectorStoreIndex,
    llm: ZTokenLLM,
    lossless: ZTokenPostprocessor,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # LlamaIndex asks for the default LLM in modes that use none.
    monkeypatch.setattr(Settings, "_llm", llm)
    for mode in (ResponseMode.NO_TEXT, ResponseMode.GENERATION, ResponseMode.CONTEXT_ONLY):
        engine = index.as_query_engine(llm=llm, node_postprocessors=[lossless], response_mode=mode)
        response = engine.query(QUESTION)
        assert [node.text for node in response.source_nodes] == [FACT]
        if mode != ResponseMode.CONTEXT_ONLY:
            assert ANSWER not in str(response)
    assert not any(map(has_handles, recorder.prompts))


@pytest.mark.parametrize("mode", ["context", "condense_plus_context"])
def test_chat_engines(
    mode: Any,
    index: VectorStoreIndex,
    llm: ZTokenLLM,
    lossless: ZTokenPostprocessor,
    compressor: ZCompressor,
    store: ZStore,
    recorder: Recorder,
) -> None:
    engine = index.as_chat_engine(chat_mode=mode, llm=llm, node_postprocessors=[lossless])
    assert ANSWER in str(engine.chat(QUESTION))
    check(recorder, compressor, store)
    engine.reset()
    assert ANSWER in "".join(engine.stream_chat(QUESTION).response_gen)
    engine.reset()

    async def ask() -> str:
        response = await engine.astream_chat(QUESTION)
        return "".join([token async for token in response.async_response_gen()])

    assert ANSWER in asyncio.run(ask())
    check(recorder, compressor, store)


def test_streamed_async_query(
    index: VectorStoreIndex, llm: ZTokenLLM, lossless: ZTokenPostprocessor
) -> None:
    engine = index.as_query_engine(llm=llm, node_postprocessors=[lossless], streaming=True)

    async def ask() -> str:
        response = await engine.aquery(QUESTION)
        return "".join([token async for token in response.response_gen])  # type: ignore[union-attr]

    assert ANSWER in asyncio.run(ask())


def test_the_event_loop_goes_on_while_the_model_answers(llm: ZTokenLLM) -> None:
    async def ask() -> int:
        ticks = 0
        task = asyncio.create_task(llm.acomplete("The capital of France is"))
        while not task.done():
            await asyncio.sleep(0.005)
            ticks += 1
        return ticks

    assert asyncio.run(ask()) > 2


def test_citations(
    index: VectorStoreIndex,
    llm: ZTokenLLM,
    lossless: ZTokenPostprocessor,
    compressor: ZCompressor,
    store: ZStore,
    recorder: Recorder,
) -> None:
    engine = CitationQueryEngine.from_args(
        index,
        llm=llm,
        node_postprocessors=[lossless],
        # The engine would otherwise cut up the source text.
        metadata_mode=MetadataMode.LLM,
    )
    assert ANSWER in str(engine.query(QUESTION))
    check(recorder, compressor, store)


def test_postprocessors_before_it(
    llm: ZTokenLLM, lossless: ZTokenPostprocessor, recorder: Recorder
) -> None:
    index = VectorStoreIndex.from_documents(
        [Document(text=f"{FACT} Note {i}.") for i in range(4)],
        embed_model=MockEmbedding(embed_dim=4),
    )
    chain = [SimilarityPostprocessor(similarity_cutoff=0.1), LongContextReorder(), lossless]
    engine = index.as_query_engine(llm=llm, node_postprocessors=chain, similarity_top_k=4)
    assert ANSWER in str(engine.query(QUESTION))
    assert recorder.prompts[0].count("⟦ztok:") == 4


class TwoQuestions(BaseQuestionGenerator):
    """Asks the one question twice, in place of an LLM that thinks up sub-questions."""

    def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return [SubQuestion(sub_question=QUESTION, tool_name="lighthouse")] * 2

    async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        return None


def test_sub_questions(
    index: VectorStoreIndex,
    llm: ZTokenLLM,
    lossless: ZTokenPostprocessor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Settings, "_llm", llm)
    engine = index.as_query_engine(llm=llm, node_postprocessors=[lossless])
    tool = QueryEngineTool.from_defaults(engine, name="lighthouse", description="lighthouses")
    sub = SubQuestionQueryEngine.from_defaults(
        query_engine_tools=[tool],
        question_gen=TwoQuestions(),
        response_synthesizer=get_response_synthesizer(llm=llm, use_async=False),
        use_async=False,
    )
    assert ANSWER in str(sub.query("In what year was the lighthouse on Brannock Point built?"))


class ScriptedAgentLLM(CustomLLM):
    """Calls the tool, then says what it returned: what a larger LLM would do."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        if "Observation:" in prompt.split(QUESTION)[-1]:
            seen = prompt.rsplit("Observation:", 1)[-1].split("\n")[0].strip()
            return CompletionResponse(text=f"Thought: I can answer.\nAnswer: {seen}")
        return CompletionResponse(
            text="Thought: I need a tool.\nAction: lighthouse\n"
            f'Action Input: {{"input": "{QUESTION}"}}'
        )

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        response = self.complete(prompt, formatted=True)
        yield CompletionResponse(text=response.text, delta=response.text)


def test_an_agent_with_a_query_engine_tool(
    index: VectorStoreIndex, llm: ZTokenLLM, lossless: ZTokenPostprocessor
) -> None:
    engine = index.as_query_engine(llm=llm, node_postprocessors=[lossless])
    tool = QueryEngineTool.from_defaults(engine, name="lighthouse", description="lighthouses")
    agent = ReActAgent(tools=[tool], llm=ScriptedAgentLLM(), streaming=False)

    async def ask() -> str:
        return str(await agent.run(QUESTION))

    assert ANSWER in asyncio.run(ask())


# -- ingestion, budgets, other LLMs, events


def test_ingestion_compresses_what_queries_will_need(
    compressor: ZCompressor, store: ZStore, llm: ZTokenLLM
) -> None:
    transform = ZTokenTransform(compressor=compressor, store=store)
    splitter = SentenceSplitter(chunk_size=64, chunk_overlap=0)
    nodes = IngestionPipeline(transformations=[splitter, transform]).run(
        documents=[Document(text=f"{FACT} {FACT} {FACT}")], show_progress=False
    )
    assert len(nodes) > 1 and store.stats.compressed == len({n.get_content() for n in nodes})
    for rate in (2.0, 7.5):
        postprocessor = ZTokenPostprocessor(rate=rate, compressor=compressor, store=store)
        postprocessor.postprocess_nodes([NodeWithScore(node=node, score=1.0) for node in nodes])
        assert postprocessor.stats.compressed == 0
    transform.query_aware = False
    assert ZTokenTransform.from_dict(transform.to_dict()).query_aware is False


def scored(count: int) -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(text=f"{FACT} Entry {i}.", metadata={"place": "Brannock"}),
            score=1.0 - i / 10,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("budget", [20, 60, 100, 200, 10_000])
def test_token_budget_is_kept_and_goes_to_the_best(
    budget: int, compressor: ZCompressor, store: ZStore, llm: ZTokenLLM
) -> None:
    postprocessor = ZTokenPostprocessor(token_budget=budget, compressor=compressor, store=store)
    nodes = postprocessor.postprocess_nodes(scored(5))
    spent = []
    for item in nodes:
        shown = item.node.get_content(MetadataMode.LLM)
        segments = split_prompt(
            shown, store.secret, compressor.fingerprint, compressor.model.token_code
        )
        # A prompt begins with a token of its own.
        spent.append(sum(compressor.reader.count_tokens([s]) - 1 for s in segments))
    assert sum(spent) <= budget
    assert spent == sorted(spent, reverse=True)
    if budget == 10_000:
        assert not any(has_handles(item.node.get_content(MetadataMode.LLM)) for item in nodes)
    if budget == 200:
        assert len(nodes) == 5 and spent[0] > 1.5 * spent[-1]


def test_plan_of_a_budget() -> None:
    assert plan_rates([100] * 3, [0] * 3, 1000, 16) == [1.0] * 3
    assert plan_rates([100], [0], 1, 16) == [None]
    for budget in range(0, 700, 37):
        sizes = [200, 100, 300, 50]
        rates = plan_rates(sizes, [3] * 4, budget, 16)
        used = [cost(s, r, 16) + 3 for s, r in zip(sizes, rates, strict=True) if r is not None]
        assert sum(used) <= budget
        assert all(rate is None or rate in BUDGET_RATES for rate in rates)


class Answer(BaseModel):
    """What a structured LLM is asked for."""

    year: int


def test_handles_go_to_an_llm_that_says_it_reads_them(
    compressor: ZCompressor, store: ZStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [NodeWithScore(node=TextNode(text=FACT), score=1.0)]
    llm = ZTokenLLM(reader=compressor.reader, store=store)
    for reading in (llm, llm.as_structured_llm(Answer), None):
        step = ZTokenPostprocessor(rate=2, llm=reading, compressor=compressor, store=store)
        (shown,) = step.postprocess_nodes(nodes)
        assert has_handles(shown.node.get_content(MetadataMode.LLM))
    for foreign in (MockLLM(), MockLLM().as_structured_llm(Answer)):
        with pytest.raises(ZtokError, match=r"cannot read Z-tokens.*answer with ZTokenLLM"):
            ZTokenPostprocessor(llm=foreign, compressor=compressor, store=store)

    # Without one by name it is Settings.llm, as it is when the nodes come.
    unnamed = ZTokenPostprocessor(rate=2, compressor=compressor, store=store)
    monkeypatch.setattr(Settings, "_llm", None)  # as it is again after the test
    Settings.llm = MockLLM()
    with pytest.raises(ZtokError, match=r"Settings\.llm is .*MockLLM.*cannot read.*name it in"):
        unnamed.postprocess_nodes(nodes)
    named = ZTokenPostprocessor(rate=2, llm=llm, compressor=compressor, store=store)
    for step in (named, unnamed):
        (shown,) = step.postprocess_nodes(nodes)
        assert has_handles(shown.node.get_content(MetadataMode.LLM))
        Settings.llm = llm


@pytest.mark.parametrize(
    "make", [ZTokenPostprocessor, ZTokenTransform, ZTokenLLM, type(default_embedding())]
)
def test_an_unknown_argument_is_refused_by_name(make: Any) -> None:
    with pytest.raises(ZtokError, match=rf"{make.__name__} has no argument 'temperature'"):
        make(temperature=0.5)
    # A field that LlamaIndex's base class declares is none of these.
    if make is not ZTokenTransform:
        manager = CallbackManager([])
        assert make(callback_manager=manager).callback_manager is manager


@pytest.mark.parametrize(("old", "new"), [("focus", "query_aware"), ("show", "context_format")])
def test_a_former_name_is_refused_with_the_new_one(old: str, new: str) -> None:
    for make in (ZTokenPostprocessor, ZTokenTransform):
        with pytest.raises(ZtokError, match=f"no argument '{old}'; it is now '{new}'"):
            make(**{old: True})  # type: ignore[arg-type]


def test_the_rate_of_a_transform_is_refused() -> None:
    with pytest.raises(ZtokError, match="ZTokenTransform has no argument 'rate'"):
        ZTokenTransform(rate=2)


def test_an_unknown_generation_argument_is_refused(llm: ZTokenLLM) -> None:
    for call in (llm.complete, llm.stream_complete):
        with pytest.raises(ZtokError, match=r"no generation argument 'temperature'.*stop"):
            call("The capital of France is", temperature=0.5)
    with pytest.raises(ZtokError, match="min_new_tokens is 100 and max_new_tokens 64"):
        ZTokenLLM(min_new_tokens=100)
    with pytest.raises(ZtokError, match="10 to 5 tokens cannot be written"):
        llm.complete("The capital of France is", min_new_tokens=10, max_tokens=5)


def test_the_embedding_of_settings_is_used_where_it_was_set(
    compressor: ZCompressor, store: ZStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, given = MockEmbedding(embed_dim=16), MockEmbedding(embed_dim=24)
    nodes = [TextNode(text=FACT)]

    def dimension(**embed_model: Any) -> int:
        """Of the embeddings of sentences that are kept."""
        store.delete([FACT])
        ZTokenTransform(compressor=compressor, store=store, **embed_model)(nodes)
        (kind,) = (key for key in store._cache if key.startswith("sentences"))
        step = ZTokenPostprocessor(compressor=compressor, store=store, **embed_model)
        embedder = step.selector.scorer.embed_model
        of_query = len(embedder.get_query_embedding("?"))
        assert f"-{of_query}-" in kind.split(":")[0]
        return of_query

    assert dimension() == 384
    monkeypatch.setattr(Settings, "_embed_model", None)  # as it is again after the test
    Settings.embed_model = own
    assert dimension() == 16
    assert dimension(embed_model=given) == 24


def test_reading_metadata_changes_no_global(llm: ZTokenLLM) -> None:
    set_global_tokenizer(str.split)
    assert llm.metadata.num_output == llm.max_new_tokens
    assert get_tokenizer() is str.split


@pytest.mark.parametrize("form", ["text", "decompressed"])
def test_another_llm_gets_text(form: Any, compressor: ZCompressor, store: ZStore) -> None:
    foreign = MockLLM()
    with pytest.raises(ZtokError, match='context_format="text"'):
        ZTokenPostprocessor(llm=foreign, compressor=compressor, store=store)
    postprocessor = ZTokenPostprocessor(
        llm=foreign, context_format=form, compressor=compressor, store=store
    )
    nodes = postprocessor.postprocess_nodes(
        [NodeWithScore(node=TextNode(text=f"{FACT} ⟦ztok:"), score=1.0)]
    )
    shown = nodes[0].node.get_content(MetadataMode.LLM)
    assert shown and not has_handles(shown) and shown != FACT
    if form == "text":
        assert compressor.count_tokens(shown) <= compressor.count_tokens(FACT) / 3
        assert "…" in shown and set(re.findall(r"\w+", shown)) <= {
            *re.findall(r"\w+", FACT),
            "ztok",
        }
        postprocessor.rate = 2
        (asked,) = postprocessor.postprocess_nodes(
            [NodeWithScore(node=TextNode(text=FACT), score=1.0)], query_str=QUESTION
        )
        assert ANSWER in asked.node.get_content(MetadataMode.LLM)
    again = ZTokenPostprocessor.from_dict(postprocessor.to_dict())
    assert again.context_format == form


def test_events_tell_what_was_done(
    index: VectorStoreIndex, llm: ZTokenLLM, lossless: ZTokenPostprocessor, recorder: Recorder
) -> None:
    coarse = ZTokenPostprocessor(rate=3, compressor=lossless.compressor, store=lossless.store)
    engine = index.as_query_engine(llm=llm, node_postprocessors=[coarse])
    engine.query(QUESTION)
    engine.query(QUESTION)
    assert [(e.hits, e.misses) for e in recorder.lookups] == [(0, 1), (1, 0)]
    assert all(e.source_tokens > 2 * e.z_tokens > 0 and e.ms > 0 for e in recorder.lookups)
    first, second = recorder.splices
    assert first.handles == second.handles == 1
    assert first.z_tokens == recorder.lookups[0].z_tokens < first.prompt_tokens


def test_a_chunk_longer_than_the_prompt_is_cut_between_handles(
    compressor: ZCompressor, store: ZStore, llm: ZTokenLLM, recorder: Recorder
) -> None:
    long_text = " ".join(f"{FACT} Chapter {i}." for i in range(45))
    postprocessor = ZTokenPostprocessor(rate=1.0, compressor=compressor, store=store)
    nodes = postprocessor.postprocess_nodes([NodeWithScore(node=TextNode(text=long_text))])
    shown = nodes[0].node.get_content(MetadataMode.LLM)
    handles = shown.split(" ")
    splitter = SentenceSplitter(chunk_size=1000, chunk_overlap=0)
    pieces = splitter.split_text(shown)
    assert len(handles) > len(pieces) > 1
    assert " ".join(pieces).split() == handles
    tokens = sum(
        s.source_tokens
        for handle in handles
        for s in split_prompt(
            handle, store.secret, compressor.fingerprint, compressor.model.token_code
        )
        if not isinstance(s, str)
    )
    assert tokens == compressor.count_tokens(long_text)


def test_labelled_rag_datasets_in_and_out(tmp_path: Path) -> None:
    records = [{"context": FACT, "question": QUESTION, "answers": [ANSWER, "in 1871"]}]
    path = tmp_path / "rag_dataset.json"
    write_rag_dataset(records, path)
    assert read_rag_dataset(path) == [{**records[0], "answers": [ANSWER]}]
    path.write_text('{"examples": [{"query": "Why?"}]}')
    with pytest.raises(DataError, match="example 0: field 'reference_contexts' is missing"):
        read_rag_dataset(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="LabelledRagDataset"):
        read_rag_dataset(path)


def test_a_question_that_leaves_no_room_is_refused(compressor: ZCompressor, store: ZStore) -> None:
    step = ZTokenPostprocessor(compressor=compressor, store=store)
    nodes = [NodeWithScore(node=TextNode(text=FACT), score=1.0)]
    with pytest.raises(ZtokError, match=r"the question takes \d+ tokens, .* shorten it"):
        step.postprocess_nodes(nodes, query_str="What is it, then? " * 2000)
    assert step.postprocess_nodes(nodes, query_str="x" * 9000)  # few tokens of many characters


@pytest.mark.parametrize("rate", ["4", None, True, [4]])
def test_a_rate_that_is_no_number_is_refused(rate: Any) -> None:
    with pytest.raises(ZtokError, match="the rate must be a number"):
        ZTokenPostprocessor(rate=rate)
