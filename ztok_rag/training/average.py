"""One checkpoint from several trained from the same start: the mean of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ztok_rag.codec.config import ZConfig
from ztok_rag.codec.model import ZModel, read_state
from ztok_rag.errors import CheckpointError, DataError


def average_checkpoints(
    checkpoints: Sequence[str | Path], *, base: str | Path | None = None
) -> ZModel:
    """Average weights, as in "Model soups" (Wortsman et al. 2022).

    Runs that start from one checkpoint and see other data, or the same in another order, stay
    near enough for their mean to predict better than each of them. So machines that cannot
    exchange gradients can share the work.

    Args:
        checkpoints: folders, two at least.
        base: as in `ZModel.from_pretrained`.

    Raises:
        DataError: there are fewer than two.
        CheckpointError: one is missing or damaged, or of another shape than the first.
    """
    folders = [Path(folder) for folder in checkpoints]
    if len(folders) < 2:
        raise DataError("an average takes two checkpoints at least; name their folders.")
    model = ZModel.from_pretrained(folders[0], base=base, device="cpu")
    configs = [ZConfig.load(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if config != configs[0]:
            raise CheckpointError(
                f"{folder} has other settings than {folders[0]}; only checkpoints trained from "
                "the same start can be averaged."
            )
    readers, parts, codes = zip(*map(read_state, folders), strict=True)
    for folder, code in zip(folders, codes, strict=True):
        if not np.array_equal(code.costs, codes[0].costs):
            raise CheckpointError(
                f"{folder} has another token code than {folders[0]}; only checkpoints trained "
                "from the same start can be averaged."
            )
    try:
        model.load_state(_mean(readers), _mean(parts))
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"the checkpoints hold different weights ({error}).") from error
    return model


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: sum(state[name].float() for state in states) / len(states)  # type: ignore[misc]
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
