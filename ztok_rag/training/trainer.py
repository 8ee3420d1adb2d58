"""The training loop: objective, rate curriculum, checkpoints, exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.model import ZModel
from ztok_rag.training.data import Example, Kind, Packed, PackedBatches, Window, pack


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
        distillation: share of the loss on answers, questions and continuations that is the
            divergence from the raw-text model's next-token distribution; the rest is the
            cross-entropy of the labels.
        gate_every: distil surprisal into the gate every this many steps.
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
    distillation: float = 0.0
    gate_every: int = 8
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
            examples: the batch.
            rate: source tokens per Z-token; at 1 the text itself is read.
            adapter: the reader's.
            fit_gate: compute the gate's loss.
            distil: compute the divergence from the raw-text model.
        """
        model, base = self.model, self.model.base
        windows = [list(p.ids) for e in examples for p in e.prefix if isinstance(p, Window)]
        gate = torch.zeros((), device=base.device)
        raw = [self._embed(torch.tensor(window)) for window in windows]
        parts = raw
        z_tokens = tokens = sum(map(len, windows))
        work = 0.0
        if rate > 1 and windows:
            encoded = model.encode(windows, rate)
            parts = list(torch.split(encoded.embeddings, encoded.counts))
            z_tokens = sum(encoded.counts)
            work += 2 * tokens * model.config.compressor_layers / base.num_layers
            if fit_gate:
                work += tokens * (1 + self.head_cost)
                target = surprisal(model, windows)
                mean = model.config.mean_information
                length = (encoded.information.mean() / mean - target.mean() / mean) ** 2
                gate = nn.functional.smooth_l1_loss(encoded.information, target) + length
            asked = [p for e in examples for p in e.prefix if isinstance(p, Window)]
            gate = gate + use_loss(encoded.uses, asked)

        questions = self.settings.question_weight > 0
        packed = pack(examples, self._embed, iter(parts), questions=questions)
        logits = self._logits(packed, packed.index, adapter)
        nats = nn.functional.cross_entropy(logits, packed.labels, reduction="none")
        work += 2 * (packed.positions.numel() + self.head_cost * len(nats))
        divergence = None
        if distil and rate > 1:
            divergence = torch.zeros_like(nats)
            soft = packed.kinds != Kind.RECONSTRUCTION
            if bool(soft.any()):
                with torch.no_grad():
                    text = pack(examples, self._embed, iter(raw), questions=questions)
                    wanted = self._logits(text, text.index[soft], self.teacher).log_softmax(-1)
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
        total = 0.1 * predictions.gate
        for kind, weight in weights.items():
            if weight and bool((predictions.kinds == kind).any()):
                total = total + weight * predictions.mean(kind, mixed)
        return total

    def _embed(self, ids: Tensor) -> Tensor:
        return self.model.base.embed(ids.to(self.model.base.device))

    def _logits(self, packed: Packed, index: Tensor, adapter: str | None) -> Tensor:
        """fp32 logits `[n, vocabulary]` at flat positions `index`."""
        base = self.model.base
        with base.adapter(adapter):
            hidden = base.decoder(
                inputs_embeds=packed.embeddings,
                attention_mask=packed.mask,
                position_ids=packed.positions,
                use_cache=False,
            ).last_hidden_state
        logits: Tensor = base.head(hidden.flatten(0, 1)[index])
        return logits.float()


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


@torch.no_grad()
def fit_gate(model: ZModel, windows: Sequence[Window], *, ridge: float = 10.0) -> float:
    """Start the gate as linear estimates from the compressor's states.

    Its surprisal is fitted by least squares, and the uses of tokens by logistic regression on
    the windows that have questions; without any, all tokens count alike.

    Returns:
        Correlation of the gate's estimate with the surprisal it was fitted to.
    """
    states, targets = [], []
    for i in range(0, len(windows), 8):
        batch = windows[i : i + 8]
        targets.append(surprisal(model, [w.ids for w in batch]))
        for window in batch:
            ids = torch.tensor([window.ids], device=model.base.device)
            hidden = model.hidden_states(ids, torch.ones_like(ids))[0]
            states.append(model.gate[0](hidden.float()))
    x, y = torch.cat(states), torch.cat(targets)
    wanted = torch.log(torch.expm1(y.clamp(0.05, 20.0)))  # inverse of the gate's softplus
    bias = wanted.mean()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], device=x.device)
    weight = torch.linalg.solve(gram, x.T @ (wanted - bias))
    linear = model.gate[1]
    assert isinstance(linear, nn.Linear)
    linear.weight.zero_()
    linear.bias.zero_()
    linear.weight[0], linear.bias[0] = weight, bias
    _fit_uses(linear, x, windows)
    estimate = nn.functional.softplus(x @ weight + bias)
    model.set_mean_information(float(estimate.mean()))
    return float(torch.corrcoef(torch.stack([estimate, y]))[0, 1])


@torch.enable_grad()
def _fit_uses(linear: nn.Linear, states: Tensor, windows: Sequence[Window]) -> None:
    """Logistic regression of the gate's outputs for uses, in place."""
    weight, bias = torch.zeros_like(linear.weight[1:]), torch.zeros_like(linear.bias[1:])
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=60)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = use_loss(states @ weight.T + bias, windows) + 1e-3 * weight.pow(2).sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        linear.weight[1:], linear.bias[1:] = weight, bias


class MasterWeights:
    """AdamW on fp32 copies of bf16 parameters, which alone are used to compute."""

    def __init__(self, groups: Sequence[tuple[dict[str, nn.Parameter], float]]) -> None:
        self.parameters = {n: p for parameters, _ in groups for n, p in parameters.items()}
        self.masters = {
            name: p.detach().float().clone() if p.dtype != torch.float32 else p
            for name, p in self.parameters.items()
        }
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [self.masters[name] for name in parameters], "lr": lr, "peak": lr}
                for parameters, lr in groups
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )

    def step(self, share: float, clip: float) -> float:
        """Update with the gradients at hand; returns their norm before clipping."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter and parameter.grad is not None:
                master.grad = parameter.grad.float()
                parameter.grad = None
        norm = nn.utils.clip_grad_norm_(
            [m for m in self.masters.values() if m.grad is not None], clip
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
        return float(norm)

    @torch.no_grad()
    def copy(self, source: str, target: str) -> None:
        """Set the weights whose names start with `target` to those that start with `source`."""
        for name, master in self.masters.items():
            if name.startswith(target):
                master.copy_(self.masters[source + name.removeprefix(target)])
                self.parameters[name].copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Masters and moments by name, for a checkpoint."""
        tensors = {}
        for name, master in self.masters.items():
            tensors[f"master.{name}"] = master.detach()
            for key, value in self.optimizer.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state`."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"master.{name}"])
            self.parameters[name].copy_(master)
            keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"{k}.{name}" in tensors]
            if keys:
                self.optimizer.state[master] = {
                    k: tensors[f"{k}.{name}"].to(master.device if k != "step" else "cpu")
                    for k in keys
                }


class Trainer:
    """Trains a `ZModel` on packed batches, and can be killed at any moment.

    `output` holds the checkpoint in the form `ZModel.from_pretrained` loads, `log.jsonl` with a
    line per step, `state/`, from which the same settings resume exactly, and `snapshots/`.
    """

    def __init__(
        self,
        model: ZModel,
        batches: PackedBatches,
        settings: TrainSettings,
        output: str | Path,
        *,
        fresh: bool = True,
        snapshot_every: int | None = None,
    ) -> None:
        """See the class.

        Args:
            fresh: the reader is untrained, and starts from the text reader.
            snapshot_every: keep the checkpoint of every so many steps, for a learning curve.
        """
        self.model = model
        self.batches = batches
        self.settings = settings
        self.output = Path(output)
        self.fresh = fresh
        self.snapshot_every = snapshot_every
        self.objective = Objective(model, settings)
        base = model.base
        adapters = {
            f"{name}.{path}": parameter
            for name in ("compress", "read", *(("text",) if settings.text_steps else ()))
            for path, parameter in base.adapter_parameters(name).items()
        }
        for parameter in adapters.values():
            parameter.requires_grad_(True)
        heads = {f"heads.{n}": p for n, p in model.named_parameters()}
        self.weights = MasterWeights([(adapters, settings.lr), (heads, settings.heads_lr)])
        self.step = 0
        self.seconds = 0.0
        self.source_tokens = 0

    def resume(self) -> bool:
        """Load the state in `output` if there is one.

        Raises:
            CheckpointError: it was written under other settings, or is damaged.
        """
        folder = self.output / "state"
        if not (folder / "state.json").exists():
            return False
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["settings"] != self._describe():
            raise CheckpointError(
                f"{self.output} holds a run with other settings; "
                "repeat its settings to resume it, or give another output folder."
            )
        self.weights.load(load_file(folder / "weights.safetensors"))
        self.model.set_mean_information(state["mean_information"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.source_tokens = state["source_tokens"]
        return True

    def _describe(self) -> Any:
        described = [dataclasses.asdict(self.settings), dataclasses.asdict(self.batches.settings)]
        return json.loads(json.dumps([*described, len(self.batches.passages)]))

    def save(self) -> None:
        """Write the checkpoint and the state to resume from, each atomically."""
        self.output.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(self.output / "checkpoint")
        temporary, folder = self.output / "state.tmp", self.output / "state"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file(self.weights.state(), temporary / "weights.safetensors")
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "source_tokens": self.source_tokens,
            "mean_information": self.model.config.mean_information,
            "settings": self._describe(),
        }
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)

    def train(self, *, progress: bool = True) -> None:
        """Run to the last step; on interruption the state so far is saved."""
        settings, saved = self.settings, time.monotonic()
        self.output.mkdir(parents=True, exist_ok=True)
        log = self._open_log()
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=not progress)
        try:
            while self.step < settings.steps:
                started = time.monotonic()
                record = self.train_step()
                self.seconds += time.monotonic() - started
                record |= {"step": self.step, "seconds": round(self.seconds, 2)}
                log.write(json.dumps(record) + "\n")
                log.flush()
                if self.snapshot_every and self.step % self.snapshot_every == 0:
                    name = f"step-{self.step:06d}"
                    self.model.save_pretrained(self.output / "snapshots" / name)
                bar.update()
                bar.set_postfix(
                    loss=f"{record['answer'] or 0:.3f}",
                    recon=f"{record['reconstruction'] or 0:.3f}",
                    rate=f"{record['rate']:.1f}",
                    src_tok_s=f"{record['source_tokens'] / (time.monotonic() - started):.0f}",
                )
                if time.monotonic() - saved > 60 * settings.save_minutes:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()
            log.close()
            bar.close()

    def _open_log(self) -> Any:
        """The log, without lines of steps that were lost with a kill."""
        path = self.output / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
        path.write_text("".join(lines[: self.step]), encoding="utf-8")
        return path.open("a", encoding="utf-8")

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its line of the log."""
        settings, rate = self.settings, self.settings.rate(self.step)
        on_text = self.step < settings.text_steps
        if self.step == settings.text_steps > 0 and self.fresh:
            self.weights.copy("text.", "read.")
        means: dict[str, list[float]] = {kind.name.lower(): [] for kind in Kind}
        gates = []
        tokens = z_tokens = positions = 0
        work = 0.0
        for i in range(settings.accumulate):
            examples, source = self.batches[self.step * settings.accumulate + i]
            predictions = self.objective.predict(
                examples,
                rate,
                adapter="text" if on_text else "read",
                fit_gate=self.step % settings.gate_every == 0,
                distil=settings.distillation > 0,
            )
            total = self.objective.total(predictions)
            if not torch.isfinite(total):
                raise DataError(f"the loss is not finite at step {self.step}; lower --lr.")
            torch.autograd.backward(total / settings.accumulate)
            for kind in Kind:
                means[kind.name.lower()].append(float(predictions.mean(kind).detach()))
            gates.append(float(predictions.gate.detach()))
            tokens += source
            z_tokens += predictions.z_tokens
            positions += predictions.positions
            work += predictions.work
        norm = self.weights.step(settings.schedule(self.step), settings.clip)
        self.step += 1
        self.source_tokens += tokens
        return {
            "rate": round(rate, 3),
            **{name: _average(values) for name, values in means.items()},
            "gate": _average(gates),
            "grad_norm": round(norm, 4),
            "source_tokens": tokens,
            "z_tokens": z_tokens,
            "positions": positions,
            "work": round(work),
        }


def _average(values: Sequence[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return round(sum(known) / len(known), 5) if known else None
