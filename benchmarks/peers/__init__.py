"""Peers of Z-tokens: ways to shorten retrieved text to a number of tokens, without training.

What a peer keeps is read by the text reader, at the token budget that Z-tokens have at the same
rate. Every peer is a function of the question, the retrieved chunks and the budget, in tokens of
the base LLM; models and packages are loaded when a peer is first called.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peers.fewer_chunks import FewerChunks
from peers.long_llmlingua import LongLLMLingua
from peers.pieces import Pieces
from peers.self_information import SelfInformation
from peers.sentences import Sentences
from peers.trimwise import Trimwise
from peers.truncate import Truncate
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Shorten

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


_PACKAGES = {
    "longllmlingua": "llama_index.postprocessor.longllmlingua",
    "trimwise": "llama_index.postprocessor.trimwise",
}

PEER_NAMES = (
    "truncate",
    "fewer-chunks",
    "sentences",
    "pieces",
    "self-information",
    "longllmlingua",
    "trimwise",
)


def make_peers(compressor: ZCompressor, *, best_first: bool) -> dict[str, Shorten]:
    """The peers by the names of their arms; none of them has loaded anything yet.

    Args:
        compressor: whose base LLM prunes and whose tokens are counted.
        best_first: the chunks come in the order in which they were retrieved; else peers that
            choose between chunks rank them by the default embedding model.
    """
    tokenizer = compressor.tokenizer
    return {
        "truncate": Truncate(tokenizer),
        "fewer-chunks": FewerChunks(tokenizer, best_first=best_first),
        "sentences": Sentences(tokenizer),
        "pieces": Pieces(compressor),
        "self-information": SelfInformation(compressor.model),
        "longllmlingua": LongLLMLingua(compressor.model),
        "trimwise": Trimwise(tokenizer),
    }


def check_packages(arms: Sequence[str]) -> None:
    """Check that the packages of the arms are installed.

    Raises:
        DataError: one is not; names it.
    """
    for arm in arms:
        name = _PACKAGES.get(arm)
        if name is None:
            continue
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            package = name.replace(".", "-").replace("_", "-")
            raise DataError(
                f"the arm {arm} needs the package {package}; run `pip install ztok-rag[bench]`."
            )
