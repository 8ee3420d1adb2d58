"""Values of options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ztok_rag.errors import DataError
from ztok_rag.jsonl import OddRecords

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas; empty ones are left out."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def numbers(text: str) -> tuple[float, ...]:
    """The numbers in a list separated by commas.

    Raises:
        DataError: one of them is not a number.
    """
    try:
        return tuple(map(float, names(text)))
    except ValueError as error:
        raise DataError(f"expected numbers separated by commas, got {text!r}.") from error


def odd_records(skip: bool) -> OddRecords | None:
    """What collects odd records where the run goes on without them; `None` where it does not."""
    return OddRecords() if skip else None


def check_device(device: str | None) -> None:
    """Make sure that there is such a device.

    Raises:
        DataError: there is not.
    """
    if device is None:
        return
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise DataError(f"there is no device {device!r}; give cpu, cuda or cuda:1.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise DataError("CUDA has no device here; give --device cpu, or leave --device out.")


def load_compressor(
    checkpoint: Path | None, base: str | None = None, device: str | None = None
) -> ZCompressor:
    """The compressor of a checkpoint; `None` is the one shipped.

    Raises:
        DataError: there is no such device.
        CheckpointError: it cannot be loaded.
    """
    check_device(device)
    from ztok_rag.codec.compressor import ZCompressor

    return ZCompressor.from_pretrained(checkpoint, base=base, device=device)
