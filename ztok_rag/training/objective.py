"""What training minimizes, and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ztok_rag.codec.model import ZModel
from ztok_rag.training.examples import Composed, Example, Kind, Window
from ztok_rag.training.packing import Packed, pack


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train.

    Attributes:
        steps: optimizer steps in all.
        text_steps: first steps, on raw text: the `text` adapter learns the task, and a fresh
            reader starts as a copy of it.
        ramp_steps: next steps, in which the highest rate rises from 1 to the median of `rates`.
        rates: afterwards each step's rate is drawn from these; repeat one to weigh it.
        accumulate: batches per optimizer step.
        lr: peak learning rate of the adapters; `heads_lr` of gate and quantizer.
        warmup: steps of linear warm-up; then a cosine to a tenth of the peak.
        reconstruction_weight: of the reconstruction loss beside the answer loss.
        question_weight: of the loss on the words of the questions; 0 leaves them out.
        continuation_weight: of the loss on what follows a compressed window.
        alignment_weight: of the distance between the reader's states at Z-tokens, where residual
            codes act, and the states that the compressor has of the full text there.
        distillation: share of the loss on answers, questions and continuations that is the
            divergence from the raw-text model's next-token distribution; the rest is the
            cross-entropy of the labels.
        fit_windows: windows that gate and quantizer are first fitted to.
        gate_every: distil surprisal into the gate every this many steps.
        reader_only: leave compressor, gate and quantizer as they are.
        clip: gradient norm limit.
        seed: of data order, rates and initial weights.
        save_minutes: minutes between checkpoints.
    """

    steps: int = 1000
    text_steps: int = 200
    ramp_steps: int = 150
    rates: tuple[float, ...] = (1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 6.0, 8.0, 8.0, 16.0, 32.0)
    accumulate: int = 1
    lr: float = 5e-4
    heads_lr: float = 3e-4
    warmup: int = 20
    reconstruction_weight: float = 0.3
    question_weight: float = 0.0
    continuation_weight: float = 0.3
    alignment_weight: float = 0.3
    distillation: float = 0.0
    fit_windows: int = 192
    gate_every: int = 8
    reader_only: bool = False
    clip: float = 1.0
    seed: int = 0
    save_minutes: float = 5.0

    def rate(self, step: int) -> float:
        """The rate of a step; a function of the seed and the step alone."""
        if step < self.text_steps:
            return 1.0
        rng = np.random.default_rng([self.seed, 2, step])
        ramp = (step - self.text_steps + 1) / max(1, self.ramp_steps)
        if ramp < 1.0:
            top = float(np.median(self.rates)) ** ramp
            return float(top ** rng.uniform(0.6, 1.0))
        return float(rng.choice(self.rates))

    def schedule(self, step: int) -> float:
        """Learning rate at a step, as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, progress))


@dataclass
class Predictions:
    """What a reader makes of a batch, for each of `n` tokens to predict.

    Attributes:
        nats: `[n]` cross-entropy, with gradient.
        divergence: `[n]` nats from the raw-text model's distribution, with gradient; `None`
            without distillation.
        right: bool `[n]`: the likeliest token is the label.
        kinds: int64 `[n]`, of `Kind`.
        examples: int64 `[n]`, the example of the batch that each belongs to.
        gate: the gate's loss.
        alignment: mean distance of the reader's states at Z-tokens from the compressor's at the
            same source tokens, with gradient.
        z_tokens: Z-tokens read.
        positions: reader positions computed, padding included.
        work: compute of a training step on it, in positions sent forward through the whole base;
            a backward pass counts as much as a forward one.
    """

    nats: Tensor
    divergence: Tensor | None
    right: Tensor
    kinds: Tensor
    examples: Tensor
    gate: Tensor
    alignment: Tensor
    z_tokens: int
    positions: int
    work: float

    def mean(self, kind: Kind, values: Tensor | None = None) -> Tensor:
        """Mean of `values` (by default the nats) over the tokens of a kind; nan without any."""
        return (self.nats if values is None else values)[self.kinds == kind].mean()


class Objective:
    """Self-expressive autoencoding: read Z-tokens back as text, and as answers.

    The paper's reconstruction and task losses over quantized codes with a straight-through
    gradient; distillation of the model that reads the raw text; and two terms for the gate:
    distillation of the base's own surprisal, and a length regularizer that keeps its mean where
    the requested rate is met.
    """

    def __init__(self, model: ZModel, settings: TrainSettings) -> None:
        self.model = model
        self.settings = settings
        self.teacher = "text" if "text" in model.config.adapters else None
        layers = sum(parameter.numel() for parameter in model.base.decoder.layers.parameters())
        embedding = model.base.embeddings.weight.numel()
        # Of the output head, as a share of the layers'.
        self.head_cost = embedding / layers

    def predict(
        self,
        examples: Sequence[Example],
        rate: float,
        *,
        adapter: str = "read",
        fit_gate: bool = False,
        distil: bool = False,
    ) -> Predictions:
        """Read a batch.

        Args:
            examples: the batch; its contexts all to be compressed, or all composed already.
            rate: source tokens per Z-token; at 1 the text itself is read.
            adapter: the reader's.
            fit_gate: compute the gate's loss.
            distil: compute the divergence from the raw-text model.
        """
        model, base = self.model, self.model.base
        composed = [p for e in examples for p in e.prefix if isinstance(p, Composed)]
        asked = [p for e in examples for p in e.prefix if isinstance(p, Window)]
        windows = [list(window.ids) for window in asked]
        gate = torch.zeros((), device=base.device)
        raw = [model.embed_text(torch.tensor(w, device=base.device)) for w in windows]
        parts = raw
        compressed = examples
        z_tokens = tokens = sum(map(len, windows))
        work = 0.0
        if composed:
            parts = [self._embed_codes(ready) for ready in composed]
            compressed = [self._with_sink(example) for example in examples]
            z_tokens = sum(map(len, parts))
        elif rate > 1 and windows:
            encoded = model.encode(windows, rate, [window.focus for window in asked])
            inputs = encoded.embeddings
            if encoded.states is not None:
                # The states to come near to travel beside the inputs, to be laid out with them.
                inputs = torch.cat([inputs, encoded.states.to(inputs.dtype)], dim=-1)
            parts = list(torch.split(inputs, encoded.counts))
            compressed = [self._with_sink(example) for example in examples]
            z_tokens = sum(encoded.counts)
            work += 2 * tokens * model.config.compressor_layers / base.num_layers
            if fit_gate:
                work += tokens * (1 + self.head_cost)
                target = surprisal(model, windows)
                mean = model.config.mean_information
                length = (encoded.information.mean() / mean - target.mean() / mean) ** 2
                gate = nn.functional.smooth_l1_loss(encoded.information, target) + length
            gate = gate + use_loss(encoded.uses, asked)

        questions = self.settings.question_weight > 0
        width = parts[0].shape[-1] if parts else None
        packed = pack(compressed, self._embed(width), iter(parts), questions=questions)
        logits, alignment = self._read(packed, packed.index, adapter)
        nats = nn.functional.cross_entropy(logits, packed.labels, reduction="none")
        work += 2 * (packed.positions.numel() + self.head_cost * len(nats))
        divergence = None
        if distil and rate > 1 and not composed:
            divergence = torch.zeros_like(nats)
            soft = packed.kinds != Kind.RECONSTRUCTION
            if bool(soft.any()):
                with torch.no_grad():
                    text = pack(examples, self._embed(), iter(raw), questions=questions)
                    logits_text, _ = self._read(text, text.index[soft], self.teacher)
                    wanted = logits_text.log_softmax(-1)
                got = logits[soft].log_softmax(-1)
                kl = nn.functional.kl_div(got, wanted, reduction="none", log_target=True).sum(-1)
                divergence = divergence.masked_scatter(soft, kl)
                work += text.positions.numel() + self.head_cost * len(kl)
        return Predictions(
            nats=nats,
            divergence=divergence,
            right=logits.detach().argmax(-1) == packed.labels,
            kinds=packed.kinds,
            examples=packed.examples,
            gate=gate,
            alignment=alignment,
            z_tokens=z_tokens,
            positions=packed.positions.numel(),
            work=work,
        )

    def total(self, predictions: Predictions) -> Tensor:
        """The loss to minimize."""
        settings = self.settings
        weights = {
            Kind.ANSWER: 1.0,
            Kind.QUESTION: settings.question_weight,
            Kind.RECONSTRUCTION: settings.reconstruction_weight,
            Kind.CONTINUATION: settings.continuation_weight,
        }
        mixed = predictions.nats
        if predictions.divergence is not None:
            share = settings.distillation
            mixed = (1 - share) * mixed + share * predictions.divergence
            hard = predictions.kinds == Kind.RECONSTRUCTION
            mixed = torch.where(hard, predictions.nats, mixed)
        total = 0.1 * predictions.gate + settings.alignment_weight * predictions.alignment
        for kind, weight in weights.items():
            if weight and bool((predictions.kinds == kind).any()):
                total = total + weight * predictions.mean(kind, mixed)
        return total

    def _with_sink(self, example: Example) -> Example:
        if example.prefix and isinstance(example.prefix[0], Window | Composed):
            return Example([[self.model.sink], *example.prefix], example.branches)
        return example

    def _embed_codes(self, composed: Composed) -> Tensor:
        codes = torch.from_numpy(composed.codes).to(self.model.base.device)
        return self.model.quantizer.embed_codes(codes, self.model.base.embeddings)

    def _embed(self, width: int | None = None) -> Callable[[Tensor], Tensor]:
        """A function from token ids to reader inputs, of a width if one is given."""

        def embed(ids: Tensor) -> Tensor:
            inputs = self.model.embed_text(ids.to(self.model.base.device))
            return nn.functional.pad(inputs, (0, (width or inputs.shape[1]) - inputs.shape[1]))

        return embed

    def _read(self, packed: Packed, index: Tensor, adapter: str | None) -> tuple[Tensor, Tensor]:
        """fp32 logits `[n, vocabulary]` at flat positions `index`, and the alignment."""
        model, base = self.model, self.model.base
        embeddings, rest = model.split(packed.embeddings)
        layers = len(model.config.inject_layers)
        added, *states = torch.split(rest, layers * base.hidden_size, dim=-1) if layers else (rest,)
        seen: list[Tensor] = []
        with base.adapter(adapter), model.injecting(added, seen if states else None):
            hidden = base.decoder(
                inputs_embeds=embeddings,
                attention_mask=packed.mask,
                position_ids=packed.positions,
                use_cache=False,
            ).last_hidden_state
        logits: Tensor = base.head(hidden.flatten(0, 1)[index])
        alignment = logits.new_zeros(())
        if states:
            is_z = (states[0] != 0).any(-1)
            wanted = states[0][is_z].chunk(layers, dim=-1)
            distances = [
                nn.functional.smooth_l1_loss(got[is_z].float() / scale, near.float() / scale)
                for got, near, scale in zip(seen, wanted, model.quantizer.scale, strict=True)
            ]
            alignment = torch.stack(distances).mean()
        return logits.float(), alignment


def use_loss(logits: Tensor, windows: Sequence[Window]) -> Tensor:
    """Cross-entropy of the gate's `[sum(n), 2]` logits over the windows that have questions."""
    wanted = torch.tensor([use for w in windows for use in w.uses or ((-1, -1),) * len(w.ids)])
    wanted = wanted.to(logits.device, torch.float32)
    known = wanted[:, 0] >= 0
    if not bool(known.any()):
        return logits.new_zeros(())
    return nn.functional.binary_cross_entropy_with_logits(logits[known], wanted[known])


@torch.no_grad()
def surprisal(model: ZModel, windows: Sequence[Sequence[int]]) -> Tensor:
    """The plain base's surprisal of every token, `[sum(n)]` nats; a window's first is the mean."""
    base = model.base
    length = max(map(len, windows))
    ids = torch.zeros(len(windows), length, dtype=torch.long)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)
    ids = ids.to(base.device)
    with base.adapter(None):
        hidden = base.decoder(input_ids=ids, use_cache=False).last_hidden_state
        values = []
        for row, window in enumerate(windows):
            n = len(window)
            logits = base.head(hidden[row, : n - 1]).float()
            nats = nn.functional.cross_entropy(logits, ids[row, 1:n], reduction="none")
            first = nats.mean(0, keepdim=True) if n > 1 else nats.new_ones(1)
            values.append(torch.cat([first, nats]))
    return torch.cat(values)
