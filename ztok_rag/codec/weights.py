"""Weights on disk: matrices in 8 bits, the rest in bf16."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
"""Columns of a matrix that share a scale."""

_SCALE = ".scale"


def quantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with a float32 scale per row and `GROUP` columns; vectors as bf16.

    A matrix whose width is no multiple of `GROUP` has one scale per row.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if tensor.ndim != 2 or not tensor.is_floating_point() or tensor.shape[1] < GROUP:
            out[name] = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            continue
        rows, columns = tensor.shape
        group = GROUP if columns % GROUP == 0 else columns
        grouped = tensor.float().view(rows, columns // group, group)
        scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        out[name] = (grouped / scale).round().to(torch.int8).view(rows, columns)
        out[name + _SCALE] = scale.squeeze(-1)
    return {name: tensor.contiguous() for name, tensor in out.items()}


def dequantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `quantize`, in float32, within half a step."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALE):
            continue
        scale = tensors.get(name + _SCALE)
        if scale is None:
            out[name] = tensor.float() if tensor.is_floating_point() else tensor
        else:
            grouped = tensor.float().view(len(tensor), scale.shape[1], -1)
            out[name] = (grouped * scale.unsqueeze(-1)).view_as(tensor)
    return out
