"""LlamaIndex's retriever, query engine and chat engine over a `ZTokenIndex`, argument by argument.

Which arguments there are is read off LlamaIndex's own constructors. Each one is passed on or
refused by name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from llama_index.core import get_response_synthesizer
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.llms import LLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.faiss import FaissVectorStore  # type: ignore[import-untyped]

from ztok_rag.errors import ZtokError
from ztok_rag.index.checks import check_embedding
from ztok_rag.index.lance import LanceStore
from ztok_rag.index.retriever import Retriever
from ztok_rag.index.vectors import FlatStore
from ztok_rag.llamaindex.arguments import parameters, refuse_unknown
from ztok_rag.llamaindex.postprocessor import FORMER_NAMES, ZTokenPostprocessor
from ztok_rag.llamaindex.settings import llm_of

if TYPE_CHECKING:
    from ztok_rag.index.asking import Asking

TOP_K = 3
"""Chunks retrieved per question, unless `similarity_top_k` says otherwise."""

_RENAMED = {"top_k": "similarity_top_k", **FORMER_NAMES}

# Of a retriever: what its base class takes, what is asked of the vector store, and two more.
_BASE = frozenset({"callback_manager", "object_map", "verbose"})
_STORE_QUERY = {
    "similarity_top_k": "similarity_top_k",
    "vector_store_query_mode": "mode",
    "filters": "filters",
    "alpha": "alpha",
    "node_ids": "node_ids",
    "doc_ids": "doc_ids",
    "sparse_top_k": "sparse_top_k",
    "hybrid_top_k": "hybrid_top_k",
}
_RETRIEVER = _BASE | _STORE_QUERY.keys() | {"embed_model", "vector_store_kwargs"}

_READING = parameters(ZTokenPostprocessor.__init__) - {
    *("llm", "compressor", "store", "embed_model"),
}
_ANSWERING = parameters(RetrieverQueryEngine.from_args) - {"retriever", "llm"}
_SYNTHESIS = (parameters(get_response_synthesizer) & _ANSWERING) - {"callback_manager", "verbose"}

_CHAT_ENGINES: dict[str, Any] = {
    ChatMode.BEST: CondensePlusContextChatEngine,
    ChatMode.CONDENSE_PLUS_CONTEXT: CondensePlusContextChatEngine,
    ChatMode.CONTEXT: ContextChatEngine,
    ChatMode.CONDENSE_QUESTION: CondenseQuestionChatEngine,
    ChatMode.SIMPLE: SimpleChatEngine,
}


def make_retriever(index: Asking, arguments: dict[str, Any]) -> BaseRetriever:
    """What `ZTokenIndex.as_retriever` returns.

    Raises:
        ZtokError: an argument is not known, out of range, or not one that the vector store heeds.
    """
    refuse_unknown("ZTokenIndex.as_retriever", arguments, _RETRIEVER, _RENAMED)
    given = {name: value for name, value in arguments.items() if value is not None}
    top_k = given.setdefault("similarity_top_k", TOP_K)
    if top_k < 1:
        raise ZtokError(
            f"similarity_top_k is the number of chunks to retrieve, at least 1, not {top_k}."
        )
    try:
        mode = VectorStoreQueryMode(given.get("vector_store_query_mode", "default"))
    except ValueError as error:
        raise ZtokError(
            f"vector_store_query_mode is one of {', '.join(VectorStoreQueryMode)}, not "
            f"{given['vector_store_query_mode']!r}."
        ) from error
    given["vector_store_query_mode"] = mode
    _refuse_what_is_ignored(index.contents.vector_store, given)
    embed_model = given.get("embed_model")
    if embed_model is not None:
        check_embedding(index.path, index.contents.manifest, embed_model)
    return Retriever(
        index.contents,
        index.embed_model if embed_model is None else embed_model,
        VectorStoreQuery(**{_STORE_QUERY[n]: v for n, v in given.items() if n in _STORE_QUERY}),
        given.get("vector_store_kwargs", {}),
        **_part(given, _BASE),
    )


def make_query_engine(
    index: Asking, llm: LLM | None, arguments: dict[str, Any]
) -> RetrieverQueryEngine:
    """What `ZTokenIndex.as_query_engine` returns.

    Raises:
        ZtokError: an argument is not known or would not be heeded, or `llm` cannot read Z-tokens.
    """
    known = _RETRIEVER | _READING | _ANSWERING
    refuse_unknown("ZTokenIndex.as_query_engine", arguments, known, _RENAMED)
    synthesizer = arguments.get("response_synthesizer")
    if synthesizer is not None:
        idle = [*_part(arguments, _SYNTHESIS), *(["llm"] if llm is not None else [])]
        if idle:
            raise ZtokError(
                f"a response_synthesizer has its own {idle[0]!r}; give that to it and not to "
                "ZTokenIndex.as_query_engine."
            )
        llm = llm_of(synthesizer)
    llm = _llm(index, llm)
    return RetrieverQueryEngine.from_args(
        make_retriever(index, _part(arguments, _RETRIEVER)),
        llm=llm,
        **{**_part(arguments, _ANSWERING), **_postprocessors(index, llm, arguments)},
    )


def make_chat_engine(
    index: Asking, chat_mode: ChatMode | str, llm: LLM | None, arguments: dict[str, Any]
) -> BaseChatEngine:
    """What `ZTokenIndex.as_chat_engine` returns.

    Raises:
        ZtokError: there is no such mode, an argument is not known in it, or `llm` cannot read
            Z-tokens.
    """
    engine = _CHAT_ENGINES.get(chat_mode)
    if engine is None:
        raise ZtokError(
            f"chat_mode is one of {', '.join(ChatMode(mode).value for mode in _CHAT_ENGINES)}, not "
            f"{chat_mode!r}."
        )
    takes = parameters(engine.from_defaults)
    chatting = takes - {"retriever", "query_engine", "llm"}
    known = chatting
    if "retriever" in takes:
        known |= _RETRIEVER | _READING
    if "query_engine" in takes:
        known |= _RETRIEVER | _READING | _ANSWERING
    owner = f"ZTokenIndex.as_chat_engine in mode {ChatMode(chat_mode).value!r}"
    refuse_unknown(owner, arguments, known, _RENAMED)
    llm = _llm(index, llm)
    parts: dict[str, Any] = _part(arguments, chatting)
    if "retriever" in takes:
        parts["retriever"] = make_retriever(index, _part(arguments, _RETRIEVER))
        parts |= _postprocessors(index, llm, arguments)
    if "query_engine" in takes:
        asking = _part(arguments, _RETRIEVER | _READING | _ANSWERING)
        parts["query_engine"] = make_query_engine(index, llm, asking)
    chat_engine: BaseChatEngine = engine.from_defaults(llm=llm, **parts)
    return chat_engine


def _llm(index: Asking, llm: LLM | None) -> LLM:
    if llm is None:
        return index.llm()
    if not isinstance(llm, LLM):
        raise ZtokError(f"llm is a LlamaIndex LLM, not {llm!r}.")
    return llm


def _postprocessors(index: Asking, llm: LLM, arguments: dict[str, Any]) -> dict[str, Any]:
    """The caller's node postprocessors, then the one that shows the LLM Z-tokens."""
    ours = index.postprocessor(llm=llm, **_part(arguments, _READING))
    return {"node_postprocessors": [*(arguments.get("node_postprocessors") or ()), ours]}


def _refuse_what_is_ignored(store: BasePydanticVectorStore, given: dict[str, Any]) -> None:
    """Refuse what our own vector stores do not heed; others are known to their owner."""
    if not isinstance(store, FaissVectorStore | LanceStore):
        return
    heeded = {*_BASE, "similarity_top_k", "embed_model"}
    if isinstance(store, FlatStore | LanceStore):
        heeded |= {"filters", "doc_ids", "node_ids"}
    if isinstance(store, LanceStore):
        heeded.add("vector_store_kwargs")
    if given["vector_store_query_mode"] == VectorStoreQueryMode.DEFAULT:
        heeded.add("vector_store_query_mode")
    name_of_store = "LanceDB" if isinstance(store, LanceStore) else "FAISS"
    for name in given:
        if name not in heeded:
            raise ZtokError(
                f"{name_of_store} searches by similarity alone and does not heed {name!r}; build "
                "the index with a vector_store that does."
            )


def _part(arguments: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in names}
