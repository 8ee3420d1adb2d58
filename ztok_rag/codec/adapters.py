"""Switching the LoRA adapters of a base LLM, whose layers share one copy of the plain weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ztok_rag.codec import internals

MOST_MERGED = 2**30
"""Bytes of the layers' weights up to which a second copy, with the adapter added, is kept."""


@dataclass(frozen=True)
class _Merged:
    """Weights with an adapter added, the adapter's, and the versions of these."""

    weights: list[nn.Parameter]
    parts: list[Tensor]
    versions: list[int]


class Adapters:
    """Which adapter the layers of a decoder use.

    An adapter beside a layer costs two more products. Where the layers are small, a copy of their
    weights with the adapter added takes their place while it is on, which costs none. It is made
    when first needed, and again when the adapter was changed.
    """

    def __init__(self, decoder: nn.Module) -> None:
        """Find the layers; no adapter is on."""
        self._layers: list[Any] = internals.tuned_layers(decoder)
        self._plain = [layer.base_layer.weight for layer in self._layers]
        self._bytes = sum(weight.nbytes for weight in self._plain)
        self._merged: dict[str, _Merged] = {}
        self.active: str | None = None
        self._beside: str | None = None
        internals.use_adapter(self._layers, None)

    @property
    def merges(self) -> bool:
        """Whether the layers are small enough for a second copy."""
        return bool(self._bytes <= MOST_MERGED)

    def use(self, name: str | None) -> None:
        """Switch one adapter on, and all others off; `None` is the plain base."""
        merges = name is not None and self.merges
        weights = self._with(name) if name is not None and merges else self._plain
        internals.use_weights(self._layers, weights)
        beside = None if merges else name
        if beside != self._beside:
            internals.use_adapter(self._layers, beside)
        self._beside, self.active = beside, name

    def _with(self, name: str) -> list[nn.Parameter]:
        """The layers' weights with an adapter added."""
        known = self._merged.get(name)
        if known is None or known.versions != list(map(internals.version, known.parts)):
            parts = [part for layer in self._layers for part in _parts(layer, name)]
            known = _Merged(self._add(name), parts, list(map(internals.version, parts)))
            self._merged[name] = known
        return known.weights

    @torch.no_grad()
    def _add(self, name: str) -> list[nn.Parameter]:
        with torch.inference_mode(False):  # else training could not use them
            return [
                nn.Parameter(weight + layer.get_delta_weight(name).to(weight.dtype), False)
                if _parts(layer, name)
                else weight
                for layer, weight in zip(self._layers, self._plain, strict=True)
            ]


def _parts(layer: Any, name: str) -> Sequence[Tensor]:
    """The two matrices of an adapter in a layer; none where it is not in that layer."""
    if name not in layer.lora_A:
        return ()
    return layer.lora_A[name].weight, layer.lora_B[name].weight
