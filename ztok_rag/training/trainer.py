"""The training loop: objective, rate curriculum, checkpoints, exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
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
from ztok_rag.training.data import IGNORE, Example, PackedBatches, Window, pack


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train.

    Attributes:
        steps: optimizer steps in all.
        text_steps: first steps, on raw text (rate 1): the reader learns the task.
        ramp_steps: next steps, in which the highest rate rises from 1 to the median of `rates`.
        rates: afterwards each step's rate is drawn from these; repeat one to weigh it.
        accumulate: batches per optimizer step.
        lr: peak learning rate of the adapters; `heads_lr` of gate and quantizer.
        warmup: steps of linear warm-up; then a cosine to a tenth of the peak.
        reconstruction_weight: of the reconstruction loss beside the answer loss.
        gate_every: distil surprisal into the gate every this many steps.
        clip: gradient norm limit.
        seed: of data order, rates and initial weights.
        save_minutes: minutes between checkpoints.
    """

    steps: int = 1000
    text_steps: int = 100
    ramp_steps: int = 150
    rates: tuple[float, ...] = (1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 8.0, 16.0)
    accumulate: int = 1
    lr: float = 5e-4
    heads_lr: float = 3e-4
    warmup: int = 20
    reconstruction_weight: float = 0.3
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
class Losses:
    """Parts of the objective for one batch, in nats; `total` carries the gradient."""

    total: Tensor
    answer: float
    reconstruction: float
    gate: float
    z_tokens: int
    positions: int


class Objective:
    """Self-expressive autoencoding: read Z-tokens back as text, and as answers.

    The paper's reconstruction and task losses over quantized codes with a straight-through
    gradient, plus two terms for the gate: distillation of the base's own surprisal, and a
    length regularizer that keeps its mean where the requested rate is met.
    """

    def __init__(self, model: ZModel, repeat: list[int], settings: TrainSettings) -> None:
        self.model = model
        self.repeat = repeat
        self.settings = settings

    def __call__(self, examples: Sequence[Example], rate: float, *, distil: bool) -> Losses:
        model, base = self.model, self.model.base
        windows = [list(p.ids) for e in examples for p in e.prefix if isinstance(p, Window)]
        gate_loss = torch.zeros((), device=base.device)
        z_tokens = sum(map(len, windows))
        if rate > 1 and windows:
            encoded = model.encode(windows, rate)
            parts: Iterator[Tensor] = iter(torch.split(encoded.embeddings, encoded.counts))
            z_tokens = sum(encoded.counts)
            if distil:
                target = surprisal(model, windows)
                mean = model.config.mean_information
                length = (encoded.information.mean() / mean - target.mean() / mean) ** 2
                gate_loss = nn.functional.smooth_l1_loss(encoded.information, target) + length
        else:
            parts = iter([base.embed(torch.tensor(w, device=base.device)) for w in windows])

        packed = pack(examples, self._embed, parts, self.repeat)
        with base.adapter("read"):
            hidden = base.decoder(
                inputs_embeds=packed.embeddings,
                attention_mask=packed.mask,
                position_ids=packed.positions,
                use_cache=False,
            ).last_hidden_state
        chosen = packed.labels != IGNORE
        logits = base.head(hidden[chosen])
        loss = nn.functional.cross_entropy(logits.float(), packed.labels[chosen], reduction="none")
        repeats = packed.reconstructs[chosen]
        answer = _mean(loss[~repeats])
        reconstruction = _mean(loss[repeats])
        total = answer + self.settings.reconstruction_weight * reconstruction + 0.1 * gate_loss
        return Losses(
            total,
            float(answer.detach()) if bool((~repeats).any()) else math.nan,
            float(reconstruction.detach()) if bool(repeats.any()) else math.nan,
            float(gate_loss.detach()),
            z_tokens,
            int(packed.labels.numel()),
        )

    def _embed(self, ids: Tensor) -> Tensor:
        return self.model.base.embed(ids.to(self.model.base.device))


def _mean(losses: Tensor) -> Tensor:
    return losses.mean() if losses.numel() else losses.sum()


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
def fit_gate(model: ZModel, windows: Sequence[Sequence[int]], *, ridge: float = 10.0) -> float:
    """Start the gate as the least-squares estimate of surprisal from the compressor's states.

    Returns:
        Correlation of the gate's estimate with the surprisal it was fitted to.
    """
    states, targets = [], []
    for i in range(0, len(windows), 8):
        batch = windows[i : i + 8]
        targets.append(surprisal(model, batch))
        for window in batch:
            ids = torch.tensor([window], device=model.base.device)
            hidden = model.hidden_states(ids, torch.ones_like(ids))[0]
            states.append(model.gate[0](hidden.float()))
    x, y = torch.cat(states), torch.cat(targets)
    wanted = torch.log(torch.expm1(y.clamp(0.05, 20.0)))  # inverse of the gate's softplus
    bias = wanted.mean()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], device=x.device)
    weight = torch.linalg.solve(gram, x.T @ (wanted - bias))
    linear = model.gate[1]
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(weight[None])
    linear.bias.copy_(bias[None])
    estimate = nn.functional.softplus(x @ weight + bias)
    model.set_mean_information(float(estimate.mean()))
    return float(torch.corrcoef(torch.stack([estimate, y]))[0, 1])


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
    line per step, and `state/`, from which the same settings resume exactly.
    """

    def __init__(
        self,
        model: ZModel,
        batches: PackedBatches,
        settings: TrainSettings,
        output: str | Path,
    ) -> None:
        self.model = model
        self.batches = batches
        self.settings = settings
        self.output = Path(output)
        self.objective = Objective(model, batches.repeat, settings)
        base = model.base
        adapters = {
            f"{name}.{path}": parameter
            for name in ("compress", "read")
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
                record = self._train_step()
                self.seconds += time.monotonic() - started
                record |= {"step": self.step, "seconds": round(self.seconds, 2)}
                log.write(json.dumps(record) + "\n")
                log.flush()
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

    def _train_step(self) -> dict[str, Any]:
        settings, rate = self.settings, self.settings.rate(self.step)
        answers, reconstructions, gates = [], [], []
        tokens = z_tokens = positions = 0
        for i in range(settings.accumulate):
            examples, source = self.batches[self.step * settings.accumulate + i]
            distil = self.step % settings.gate_every == 0
            losses = self.objective(examples, rate, distil=distil)
            if not torch.isfinite(losses.total):
                raise DataError(f"the loss is not finite at step {self.step}; lower --lr.")
            torch.autograd.backward(losses.total / settings.accumulate)
            answers.append(losses.answer)
            reconstructions.append(losses.reconstruction)
            gates.append(losses.gate)
            tokens += source
            z_tokens += losses.z_tokens
            positions += losses.positions
        norm = self.weights.step(settings.schedule(self.step), settings.clip)
        self.step += 1
        self.source_tokens += tokens
        return {
            "rate": round(rate, 3),
            "answer": _average(answers),
            "reconstruction": _average(reconstructions),
            "gate": _average(gates),
            "grad_norm": round(norm, 4),
            "source_tokens": tokens,
            "z_tokens": z_tokens,
            "positions": positions,
        }


def _average(values: Sequence[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return round(sum(known) / len(known), 5) if known else None
