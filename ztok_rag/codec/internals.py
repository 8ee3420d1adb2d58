"""Uses of what torch and peft do not document, all in one place.

`pyproject.toml` bounds the versions of both from above because of these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


def multiplies_bf16() -> bool:
    """Whether this CPU has matrix units for bf16 (AMX).

    `torch.cpu.get_capabilities` tells it in public, but not in every version that is supported.
    """
    return bool(torch.cpu._is_amx_tile_supported())


def is_fast_in_bf16(device: str) -> bool:
    """Whether a type of device multiplies bf16 sooner than float32, mixed with it."""
    if device != "cpu":
        return True
    return multiplies_bf16() or bool(torch.cpu._is_avx512_bf16_supported())


def tuned_layers(decoder: nn.Module) -> list[BaseTunerLayer]:
    """The layers of a decoder that have adapters. peft gives them no public name."""
    return [module for module in decoder.modules() if isinstance(module, BaseTunerLayer)]


def use_adapter(layers: Iterable[BaseTunerLayer], name: str | None) -> None:
    """Switch one adapter on in some layers, and all others off; `None` is none.

    peft's public switch also rewrites `requires_grad`, which training owns, and walks the model,
    which is slow beside one step of generation.
    """
    for layer in layers:
        layer._disable_adapters = name is None
        layer._active_adapter = [] if name is None else [name]


def use_weights(layers: Iterable[BaseTunerLayer], weights: Iterable[nn.Parameter]) -> None:
    """Give some layers other weights than those beside which their adapters stand.

    `nn.Module`'s own way checks each name, which is slow beside one step of generation.
    """
    for layer, weight in zip(layers, weights, strict=True):
        layer.base_layer._parameters["weight"] = weight


def version(tensor: Tensor) -> int:
    """A number that grows with each change in place; -1 of tensors that are not tracked."""
    return -1 if tensor.is_inference() else tensor._version


def first_layers(decoder: Any, n: int) -> nn.Module:
    """A decoder cut after its first `n` layers, sharing the weights; no final norm.

    `copy.copy` alone would share the dictionary of submodules, too.
    """
    short = copy.copy(decoder)
    short._modules = dict(decoder._modules)
    short.layers = nn.ModuleList(list(decoder.layers)[:n])
    short.norm = nn.Identity()
    short.config = copy.copy(decoder.config)
    short.config.num_hidden_layers = n
    return short  # type: ignore[no-any-return]


def adapter_changes(model: nn.Module, name: str) -> dict[str, Tensor]:
    """What an adapter adds to the weight of each layer, `[out, in]`, by the layer's name."""
    return {
        path: layer.get_delta_weight(name)
        for path, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
