"""What the reader's adapter, the packer and the pointer learn from a batch."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ztok_rag.codec.model import READ, ZModel
from ztok_rag.training.batches import Batch

_TARGETS_AT_ONCE = 2048


@dataclass
class Losses:
    """What the reader makes of a batch.

    Attributes:
        nats: `[targets]` cross-entropy of each target token.
        right: `[targets]` whether it is the likeliest.
        pointer: `[rows, queries]` cross-entropy of the places where the next token stands.
        found: `[rows, queries]` whether the likeliest place is one of them.
        counted: `[rows, queries]` whether one of them is in the row; the others are 0.
    """

    nats: Tensor
    right: Tensor
    pointer: Tensor
    found: Tensor
    counted: Tensor


class Objective(nn.Module):
    """The trained parts of a model in fp32, and the losses of a batch.

    The adapter is not run beside the base's layers: each step adds it to their weights and runs
    the base with these, which gradients reach the adapter through. So the compressed positions of
    a batch cost what they cost the plain base.
    """

    def __init__(self, model: ZModel) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)  # the base is not trained
        self.model: ZModel
        for parameter in [*model.base.model.parameters(), *model.parameters()]:
            parameter.requires_grad_(False)
        self.packer = model.packer.float().requires_grad_(True)
        self.pointer = model.pointer
        if self.pointer is not None:
            self.pointer.float().requires_grad_(True)
        self.down = nn.ParameterDict()
        self.up = nn.ParameterDict()
        self._layers: list[tuple[str, str, Tensor, float]] = []
        adapter = model.base.adapter_parameters(READ)
        for name in adapter:
            if not name.endswith(".lora_A.weight"):
                continue
            path = name.removesuffix(".lora_A.weight")
            layer: Any = model.base.decoder.get_submodule(path)
            key = path.replace(".", "/")
            self.down[key] = nn.Parameter(adapter[name].detach().float().clone())
            self.up[key] = nn.Parameter(adapter[f"{path}.lora_B.weight"].detach().float().clone())
            weight = f"{path}.base_layer.weight"
            self._layers.append((key, weight, layer.base_layer.weight, layer.scaling[READ]))

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the adapter into the model, where it is saved from and used."""
        adapter = self.model.base.adapter_parameters(READ)
        for key, weight, _, _ in self._layers:
            path = weight.removesuffix(".base_layer.weight")
            adapter[f"{path}.lora_A.weight"].copy_(self.down[key])
            adapter[f"{path}.lora_B.weight"].copy_(self.up[key])

    def merged(self) -> dict[str, Tensor]:
        """The decoder's weights with the adapter added, by their names."""
        return {
            name: torch.addmm(
                weight, self.up[key].to(weight.dtype), self.down[key].to(weight.dtype), alpha=scale
            )
            for key, name, weight, scale in self._layers
        }

    def forward(self, batch: Batch) -> Losses:
        """The losses of a batch."""
        base = self.model.base
        kind = base.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=base.dtype == torch.bfloat16):
            inputs = self.model.embed_codes(batch.codes).view(-1, batch.length, base.hidden_size)
            kept: list[Tensor] = []
            with (
                base.adapter(None),
                nullcontext(kept)
                if self.pointer is None
                else base.captured_states(self.model.config.pointer_layer) as kept,
            ):
                out = functional_call(
                    base.decoder,
                    self.merged(),
                    kwargs={"inputs_embeds": inputs, "use_cache": False},
                    tie_weights=False,
                )
            states = out.last_hidden_state.flatten(0, 1)[batch.at]
            nats, right = target_nats(self.model, states, batch.target)
            pointer, found, counted = self._point(batch, kept)
        return Losses(nats, right, pointer, found, counted)

    def _point(self, batch: Batch, kept: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of each query, whether its likeliest place is right, and whether it counts."""
        if self.pointer is None:
            none = torch.zeros_like(batch.shares)
            return none, none.bool(), none.bool()
        states = kept[0]  # [rows, length, hidden]
        rows = torch.arange(len(states), device=states.device).unsqueeze(1)
        scores = self.pointer(states[rows, batch.queries], states.unsqueeze(1))
        starts, ends = batch.spans.view(-1, 1, batch.length, 2).unbind(-1)
        golds = batch.golds.unsqueeze(2)
        inside = (starts.unsqueeze(-1) <= golds) & (golds < ends.unsqueeze(-1)) & (golds >= 0)
        right = inside.any(-1) & (starts >= 0)
        scores = scores.masked_fill(starts < 0, -1e4)
        nats = scores.logsumexp(-1) - scores.masked_fill(~right, -1e4).logsumexp(-1)
        found = right.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1)
        counted = right.any(-1)
        return nats * counted, found & counted, counted


def target_nats(model: ZModel, states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy `[n]` of tokens after the last states, and whether each is the likeliest."""
    head: Any = model.base.head
    config = model.base.model.config
    cap = getattr(config, "final_logit_softcapping", None) or 0.0
    nats, right = _TargetNats.apply(states, head.weight, target, float(cap))  # type: ignore[no-untyped-call]
    return nats, right


class _TargetNats(torch.autograd.Function):
    """Cross-entropy through the frozen output embedding.

    The logits of a large vocabulary would take more memory than all else. As the output embedding
    learns nothing, the gradient is the states' alone, and is worked out beside the loss.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, states: Tensor, weight: Tensor, target: Tensor, cap: float
    ) -> tuple[Tensor, Tensor]:
        nats, right = states.new_empty(len(states), dtype=torch.float32), torch.empty_like(target)
        slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        for at in range(0, len(states), _TARGETS_AT_ONCE):
            part = slice(at, at + _TARGETS_AT_ONCE)
            logits = (states[part].to(weight.dtype) @ weight.T).float()
            if cap:
                logits = cap * torch.tanh(logits / cap)
            own = target[part].unsqueeze(1)
            total = logits.logsumexp(-1, keepdim=True)
            nats[part] = (total - logits.gather(1, own)).squeeze(1)
            right[part] = logits.argmax(-1)
            if slopes is None:
                continue
            slope = (logits - total).exp_()
            slope.scatter_add_(1, own, torch.full_like(total, -1.0))
            if cap:
                slope *= 1 - (logits / cap) ** 2
            slopes[part] = (slope.to(weight.dtype) @ weight).to(slopes.dtype)
        right = right == target
        ctx.mark_non_differentiable(right)
        ctx.save_for_backward(slopes)
        return nats, right

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (slopes,) = ctx.saved_tensors
        return (slopes * grad.unsqueeze(1)).to(slopes.dtype), None, None, None
