"""Peers of Z-tokens: methods that shorten retrieved text to a token budget, without training.

A file per method, with one class in it. The text reader reads what a method keeps. The budget is
the number of Z-tokens at the same rate, counted in tokens of the base LLM. Models and packages are
loaded when a peer is first called.
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
from ztok_rag.evaluation.arms import COPYING

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
    """The peers, by the names of their arms.

    Args:
        compressor: its base LLM scores tokens, and its tokenizer counts them.
        best_first: chunks come in the order of retrieval, the best first. Otherwise peers that
            choose between chunks rank them with the default embedding model.
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
    """Check that the packages that the arms need are installed.

    Raises:
        DataError: a package is missing. The message names it.
    """
    for arm in arms:
        name = _PACKAGES.get(arm.removesuffix(COPYING))
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
