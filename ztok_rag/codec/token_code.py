"""A static entropy code for token ids: the more usual a token after the one before, the shorter.

The range coder is that of the `constriction` library (Bamler 2022, arXiv 2201.01741). Its model is
fitted once on training text and is a part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from ztok_rag.errors import SequenceError

IntArray = NDArray[np.int64]

_STEPS_PER_BIT = 16
_LONGEST = 255  # of a code, in steps
_ONE = 1 << 40
_ROOTS = [int(_ONE * 2.0 ** (-i / _STEPS_PER_BIT)) for i in range(_STEPS_PER_BIT)]
_WEIGHTS = np.array([_ROOTS[q % _STEPS_PER_BIT] >> (q // _STEPS_PER_BIT) for q in range(256)])


class TokenCode:
    """Codes for token ids and for other small integers.

    Ids are coded by the class of the token before: each of the most frequent tokens is a class of
    its own, all others are one.

    Attributes:
        costs: uint8 `[classes, vocabulary]` length of each id's code after each class, in
            sixteenths of a bit.
        leaders: int32 `[classes - 1]` the tokens that are classes of their own.
        levels: uint8 `[symbols]` length of the code of each level (`encode_levels`), likewise.
    """

    def __init__(
        self, costs: NDArray[np.uint8], leaders: NDArray[np.int32], levels: NDArray[np.uint8]
    ) -> None:
        self.costs = costs
        self.leaders = leaders
        self.levels = levels
        self._models: dict[int, Any] = {}

    @classmethod
    def fit(
        cls,
        texts: Iterable[Sequence[int]],
        levels: Iterable[Sequence[int]],
        vocabulary: int,
        *,
        classes: int = 64,
        symbols: int = 7,
    ) -> TokenCode:
        """Count tokens and levels of training text.

        Args:
            texts: token ids of each text.
            levels: levels of each text's tokens.
            vocabulary: number of ids.
            classes: of the token before.
            symbols: number of levels.
        """
        rows = [np.asarray(ids, np.int64) for ids in texts]
        before = np.concatenate([np.concatenate([[-1], ids[:-1]]) for ids in rows])
        ids = np.concatenate(rows)
        alone = np.bincount(ids, minlength=vocabulary) + 0.5
        leaders = np.argsort(-alone, kind="stable")[: classes - 1].astype(np.int32)
        code = cls(np.zeros((classes, vocabulary), np.uint8), leaders, np.zeros(symbols, np.uint8))
        joint = np.bincount(
            code._classes(before) * vocabulary + ids, minlength=classes * vocabulary
        ).reshape(classes, vocabulary)
        prior = 2000.0 * alone / alone.sum()
        code.costs = _costs((joint + prior) / (joint.sum(1, keepdims=True) + prior.sum()))
        seen = np.bincount(np.concatenate([np.asarray(x) for x in levels]), minlength=symbols) + 1.0
        code.levels = _costs(seen / seen.sum())
        return code

    @classmethod
    def uniform(cls, vocabulary: int, symbols: int = 7) -> TokenCode:
        """The code of a checkpoint that was fitted on nothing: all ids are alike."""
        bits = int(np.ceil(np.log2(vocabulary))) * _STEPS_PER_BIT
        costs = np.full((1, vocabulary), min(bits, _LONGEST), np.uint8)
        return cls(costs, np.zeros(0, np.int32), np.full(symbols, 3 * _STEPS_PER_BIT, np.uint8))

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.costs.shape[1])

    @cached_property
    def rarity(self) -> NDArray[np.float32]:
        """`[vocabulary]` length of each id's code whatever stands before it, in nats."""
        nats: NDArray[np.float32] = self.costs[-1].astype(np.float32) * (
            np.float32(np.log(2)) / _STEPS_PER_BIT
        )
        return nats

    def encode(self, ids: IntArray, levels: NDArray[np.uint8] | None = None) -> bytes:
        """Bytes of `[n]` token ids, and of their levels where given."""
        coder = constriction.stream.stack.AnsCoder()
        if levels is not None and len(levels):
            coder.encode_reverse(levels.astype(np.int32), self._level_model)
        classes = self._classes(np.concatenate([[-1], ids[:-1]])).tolist()
        for symbol, group in zip(reversed(ids.tolist()), reversed(classes), strict=True):
            coder.encode_reverse(symbol, self._model(group))
        words = coder.get_compressed().astype("<u4")
        return bytes(words.tobytes())

    def decode(
        self, data: bytes, count: int, *, with_levels: bool = False
    ) -> tuple[IntArray, NDArray[np.uint8]]:
        """Inverse of `encode`.

        Args:
            data: what `encode` returned.
            count: number of ids.
            with_levels: whether levels were encoded.

        Returns:
            Ids `[count]`, and levels `[count]` or `[0]`.

        Raises:
            SequenceError: the bytes cannot be decoded.
        """
        if len(data) % 4:
            raise SequenceError("the token ids of this Z-token sequence are truncated.")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        # No encoder ends in a zero word, and constriction refuses one. An id takes one step at
        # least, less a little that rounding gives.
        most = 2 * _STEPS_PER_BIT * 8 * (len(data) + 8)
        if count > most or (len(words) and not words[-1]):
            raise SequenceError("the token ids of this Z-token sequence are damaged.")
        coder = constriction.stream.stack.AnsCoder(words)
        ids = np.empty(count, np.int64)
        group = int(self._classes(np.array([-1]))[0])
        own = self._class_of
        for place in range(count):
            symbol = int(coder.decode(self._model(group)))
            ids[place] = symbol
            group = own.get(symbol, len(self.leaders))
        levels = np.zeros(0, np.uint8)
        if with_levels and count:
            levels = np.asarray(coder.decode(self._level_model, count)).astype(np.uint8)
        return ids, levels

    @cached_property
    def _class_of(self) -> dict[int, int]:
        return {int(token): place for place, token in enumerate(self.leaders)}

    def _classes(self, ids: IntArray) -> IntArray:
        """Class of each token; -1, before the first token, is in the class of all others."""
        table = np.full(self.vocabulary + 1, len(self.leaders), np.int64)
        table[self.leaders] = np.arange(len(self.leaders))
        found: IntArray = table[ids]
        return found

    def _model(self, group: int) -> Any:
        if group not in self._models:
            self._models[group] = _categorical(self.costs[group])
        return self._models[group]

    @cached_property
    def _level_model(self) -> Any:
        return _categorical(self.levels)


def _costs(probabilities: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Code lengths of probabilities, in steps."""
    steps = np.rint(-np.log2(probabilities) * _STEPS_PER_BIT)
    rounded: NDArray[np.uint8] = steps.clip(1, _LONGEST).astype(np.uint8)
    return rounded


def _categorical(costs: NDArray[np.uint8]) -> Any:
    weights = _WEIGHTS[costs].astype(np.float64)
    return constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)
