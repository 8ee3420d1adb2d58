"""Token ids in about as many bits as the base LLM finds them surprising, and back, exactly.

Each token is range-coded with the distribution that the LLM gives it after those before (language
modelling is compression, Delétang et al. 2023, arXiv 2309.10668). Who decodes must compute the same
distributions to the bit. So both sides read one token at a time, in float32 on one thread of the
CPU, in batches of the same shape. Another kind of CPU, or another version of torch, may round
otherwise; the digest of the text then tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import constriction
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import DynamicCache

from ztok_rag.codec.base import BaseLM, decode_exactly
from ztok_rag.codec.sequence import text_digest
from ztok_rag.codec.serialization import parse_varints, varints
from ztok_rag.errors import SequenceError

IntArray = NDArray[np.int64]

MAGIC = b"ZL2\n"
"""Begins files of text in this code."""

WINDOW = 1024
"""Most tokens that the LLM sees at once; each window begins anew."""

_DIFFERS = (
    "the text does not come back: the file is damaged, or this machine computes the base LLM "
    "otherwise than the one that wrote it; decompress it on a machine of the same kind, or "
    "compress the source text again, without --lossless."
)
_AT_ONCE = 16  # windows in one batch
_STEPS_PER_BIT = 16
_ONE = 1 << 40
_WEIGHTS = np.array(
    [
        int(_ONE * 2.0 ** (-(q % _STEPS_PER_BIT) / _STEPS_PER_BIT)) >> (q // _STEPS_PER_BIT)
        for q in range(40 * _STEPS_PER_BIT)
    ]
)


@dataclass(frozen=True)
class LosslessText:
    """A text in the code of a base LLM.

    Attributes:
        base: 8 hex digits of whose code it is (`BaseLM.fingerprint`).
        rate: source tokens per Z-token that were asked for; the Z-tokens are not kept.
        tokens: how many token ids are coded.
        digest: `text_digest` of the text.
        data: the coded ids.
    """

    base: str
    rate: float
    tokens: int
    digest: bytes
    data: bytes

    @classmethod
    def encode(cls, text: str, ids: IntArray, base: BaseLM, rate: float) -> LosslessText | None:
        """Code a text, and decode it at once.

        Args:
            text: what the ids are of.
            ids: `[n]` its token ids.
            base: in float32 on the CPU (`coding_base`).
            rate: of Z-tokens, at which the text was to be compressed.

        Returns:
            `None` where the text does not come back on this machine.
        """
        coded = cls(
            base.fingerprint()[:8], rate, len(ids), text_digest(text), encode_ids(base, ids)
        )
        try:
            return coded if coded.decode(base) == text else None
        except SequenceError:
            return None

    def decode(self, base: BaseLM) -> str:
        """The text.

        Raises:
            SequenceError: it does not come back with this base, or on this machine.
        """
        if base.fingerprint()[:8] != self.base:
            raise SequenceError(
                f"this text was coded with another base LLM than {base.name}; give the --base that "
                "it was compressed with."
            )
        text = decode_exactly(base.tokenizer, decode_ids(base, self.data, self.tokens))
        if text_digest(text) != self.digest:
            raise SequenceError(_DIFFERS)
        return text

    def to_bytes(self) -> bytes:
        """Compact bytes; the digest of the text is their only check."""
        counts = varints([round(100 * self.rate), self.tokens])
        return MAGIC + bytes.fromhex(self.base) + self.digest + counts + self.data

    @classmethod
    def from_bytes(cls, data: bytes) -> LosslessText:
        """Inverse of `to_bytes`.

        Raises:
            SequenceError: the bytes are something else, or are truncated.
        """
        if data[:4] != MAGIC:
            raise SequenceError("this is no losslessly compressed text; compress the text again.")
        counts, at = parse_varints(data, 2, 16)  # after magic, base and digest
        return cls(data[4:8].hex(), int(counts[0]) / 100, int(counts[1]), data[8:16], data[at:])


def coding_base(base: BaseLM) -> BaseLM:
    """The base LLM as it codes, in float32 on the CPU: itself, or loaded anew."""
    if base.device.type == "cpu" and base.dtype == torch.float32:
        return base
    return BaseLM.load(base.name, device="cpu", dtype=torch.float32)


def encode_ids(base: BaseLM, ids: IntArray) -> bytes:
    """Bytes of `[n]` token ids."""
    coder = constriction.stream.queue.RangeEncoder()

    def code(place: int, model: object) -> int:
        coder.encode(int(ids[place]), model)
        return int(ids[place])

    _walk(base, len(ids), code, "Coding")
    # Whole words were written; a decoder reads zeros after the end.
    return bytes(coder.get_compressed().astype("<u4").tobytes()).rstrip(b"\0")


def decode_ids(base: BaseLM, data: bytes, count: int) -> IntArray:
    """Inverse of `encode_ids`; other ids on a machine that computes otherwise.

    Raises:
        SequenceError: the bytes cannot be decoded.
    """
    words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    ids = np.zeros(count, np.int64)

    def code(place: int, model: object) -> int:
        ids[place] = int(coder.decode(model))
        return int(ids[place])

    try:
        _walk(base, count, code, "Decoding")
    except AssertionError as error:  # constriction's word for data that no encoder wrote
        raise SequenceError(_DIFFERS) from error
    return ids


def _walk(base: BaseLM, count: int, code: Callable[[int, object], int], what: str) -> None:
    """Call `code` for each token, with its place and its distribution; it returns the id.

    Windows of at most `WINDOW` tokens are read side by side, so they take turns.
    """
    windows = np.array_split(np.arange(count), max(1, -(-count // WINDOW)))
    with (
        _one_thread(),
        base.adapter(None),
        tqdm(total=count, unit="token", desc=what, leave=False, disable=None, delay=2) as bar,
    ):
        for at in range(0, len(windows), _AT_ONCE):
            own = windows[at : at + _AT_ONCE]
            cache = DynamicCache(config=base.model.config)
            last = [base.start_token] * len(own)
            for step in range(max(map(len, own))):
                weights = _weights(base, last, cache)
                for row, places in enumerate(own):
                    if step < len(places):
                        model = constriction.stream.model.Categorical(weights[row], lazy=True)
                        last[row] = code(int(places[step]), model)
                        bar.update()


@torch.inference_mode()
def _weights(base: BaseLM, last: list[int], cache: DynamicCache) -> NDArray[np.float64]:
    """`[rows, vocabulary]` how likely each token is to be next, in whole numbers.

    Scores are rounded to sixteenths of a bit, so that the sums that follow are exact.
    """
    tokens = torch.tensor(last).unsqueeze(1)
    logits = base.model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[:, -1]
    below = (logits.amax(-1, keepdim=True) - logits) * (_STEPS_PER_BIT / np.log(2))
    steps = below.round().clamp(max=len(_WEIGHTS) - 1).long().numpy()
    weights = _WEIGHTS[steps]
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run the body on one thread: how sums are shared out among threads changes their rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
