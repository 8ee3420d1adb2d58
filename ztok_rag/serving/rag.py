"""Questions to indexes: answers with the chunks they were read from, and where they stand there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers.refine import DEFAULT_RESPONSE_PADDING_SIZE
from llama_index.core.schema import MetadataMode

from ztok_rag.files import repair, show
from ztok_rag.index.index import ZTokenIndex
from ztok_rag.llamaindex.citations import Citation, find_citations
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.threads import in_thread
from ztok_rag.serving.asking import Asking, stamp
from ztok_rag.serving.failures import Refusal
from ztok_rag.serving.requests import RagRequest
from ztok_rag.serving.server_sent import streamed
from ztok_rag.storage.handle import escape_handles

_EMPTY = "Empty Response"  # what LlamaIndex answers where the LLM writes nothing


def rag_router(indexes: Mapping[str, ZTokenIndex], asking: Asking) -> APIRouter:
    """Routes of indexes."""
    router = APIRouter()

    @router.get("/v1/indexes")
    async def names() -> dict[str, Any]:
        data = [{"id": name, "object": "index"} for name in indexes]
        return {"object": "list", "data": data}

    @router.post("/v1/indexes/{name}/rag")
    async def rag(name: str, request: RagRequest) -> Response:
        """Answer a question from the Z-tokens of an index's best chunks."""
        if name not in indexes:
            raise Refusal(
                f"there is no index {show(name)[:80]!r}; there are {', '.join(indexes) or 'none'}.",
                status=404,
                code="index_not_found",
            )
        index = indexes[name]
        question = escape_handles(repair(request.question))
        if not question.strip():
            raise Refusal("the question has no words; ask one.", param="question")
        longest = asking.arguments(request.max_tokens, ()).get("max_tokens")
        counter = TokenCountingHandler()
        llm, engine = await in_thread(_engine, index, request, longest, counter)
        await in_thread(_check_room, llm, engine, question)
        response = await engine.aquery(question)
        head = stamp("rag", name)
        if isinstance(response, AsyncStreamingResponse):
            chunk_head = {**head, "object": "rag.answer.chunk"}
            parts = await _stream(response, llm, counter)
            return streamed(parts, lambda part: [{**chunk_head, **part}])
        citations = await in_thread(find_citations, response, llm)
        return JSONResponse(
            {
                **head,
                "object": "rag.answer",
                "answer": str(response),
                **_sources(response),
                **_ending(citations, counter),
            }
        )

    return router


def _engine(
    index: ZTokenIndex, request: RagRequest, longest: int | None, counter: TokenCountingHandler
) -> tuple[ZTokenLLM, RetrieverQueryEngine]:
    """A query engine for one question, and its LLM, whose tokens `counter` counts."""
    given = {} if longest is None else {"max_new_tokens": longest}
    llm = index.llm(**given)
    engine = index.as_query_engine(
        llm=llm, similarity_top_k=request.similarity_top_k, streaming=request.stream
    )
    llm.callback_manager = CallbackManager([counter])  # a synthesizer gives its LLM another
    return llm, engine


async def _stream(
    response: AsyncStreamingResponse, llm: ZTokenLLM, counter: TokenCountingHandler
) -> AsyncGenerator[dict[str, Any], None]:
    """A streamed answer in parts: its sources, its text piece by piece, and its ending.

    What is wrong with the question is raised here, before the first part.
    """
    pieces = response.response_gen
    first = await anext(pieces, "")

    async def parts() -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(pieces):
            yield _sources(response)
            answer = first
            if first:
                yield _delta(first)
            async for piece in pieces:
                if piece:
                    answer += piece
                    yield _delta(piece)
        if not answer:  # as without a stream
            answer = _EMPTY
            yield _delta(answer)
        citations = await in_thread(find_citations, response, llm, answer=answer)
        yield _ending(citations, counter)

    return parts()


def _delta(piece: str) -> dict[str, Any]:
    return {"delta": {"answer": piece}}


def _sources(response: RESPONSE_TYPE) -> dict[str, Any]:
    return {
        "source_nodes": [
            {
                "node_id": item.node.node_id,
                "document_id": item.node.ref_doc_id,
                "score": None if item.score is None else float(item.score),
                "text": item.node.get_content(MetadataMode.NONE),
                "metadata": item.node.metadata,
            }
            for item in response.source_nodes
        ]
    }


def _ending(citations: Sequence[Citation], counter: TokenCountingHandler) -> dict[str, Any]:
    """What is known of an answer once it is whole."""
    prompt, written = counter.prompt_llm_token_count, counter.completion_llm_token_count
    return {
        "citations": [asdict(citation) for citation in citations],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        },
    }


def _check_room(llm: ZTokenLLM, engine: RetrieverQueryEngine, question: str) -> None:
    """Make sure that a question leaves room for chunks in every prompt of an engine.

    Raises:
        Refusal: it is too long.
    """
    # As the engine's synthesizer does, which would raise what is no refusal.
    helper = PromptHelper.from_llm_metadata(llm.metadata)
    padding = DEFAULT_RESPONSE_PADDING_SIZE
    for template in engine.get_prompts().values():
        prompt = template.partial_format(query_str=question)
        try:
            helper.get_text_splitter_given_prompt(prompt, padding=padding, llm=llm)
        except ValueError:
            raise Refusal(
                f"the question leaves no room for chunks in the {llm.reader.max_positions} "
                "positions that the reader reads; ask a shorter one, or for a shorter answer.",
                code="context_length_exceeded",
                param="question",
            ) from None
