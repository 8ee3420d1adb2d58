"""The training loop: optimizer, checkpoints, exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from ztok_rag.codec.model import ZModel, is_relevance
from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.training.batches import PackedBatches
from ztok_rag.training.examples import Kind
from ztok_rag.training.fit import fit_heads
from ztok_rag.training.objective import Objective, TrainSettings


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
        names = ["read"] if settings.reader_only else ["compress", "read"]
        names += ["text"] if settings.text_steps else []
        adapters = {
            f"{name}.{path}": parameter
            for name in names
            for path, parameter in model.base.adapter_parameters(name).items()
        }
        heads = {f"heads.{n}": p for n, p in model.named_parameters() if not is_relevance(n)}
        for parameter in model.base.model.parameters():
            parameter.requires_grad_(False)
        for parameter in adapters.values():
            parameter.requires_grad_(True)
        for parameter in heads.values():
            parameter.requires_grad_(not settings.reader_only)
        groups = [(adapters, settings.lr)]
        if not settings.reader_only:
            groups.append((heads, settings.heads_lr))
        self.weights = MasterWeights(groups)
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
        tensors = load_file(folder / "weights.safetensors")
        self.weights.load(tensors)
        with torch.no_grad():
            self.model.quantizer.scale.copy_(tensors["scale"])
        self.model.set_mean_information(state["mean_information"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.source_tokens = state["source_tokens"]
        return True

    def _describe(self) -> Any:
        described = [dataclasses.asdict(self.settings), *self.batches.described]
        return json.loads(json.dumps(described))

    def save(self) -> None:
        """Write the checkpoint and the state to resume from, each atomically."""
        self.output.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(self.output / "checkpoint")
        temporary, folder = self.output / "state.tmp", self.output / "state"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        tensors = {**self.weights.state(), "scale": self.model.quantizer.scale.cpu()}
        save_file(tensors, temporary / "weights.safetensors")
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

    def _start(self) -> None:
        """Start compressor and reader as the text reader, and gate and quantizer from fits."""
        if self.settings.text_steps:
            self.weights.copy("text.", "read.")
            self.weights.copy("text.", "compress.")
        fit_heads(self.model, self.batches.sample_windows(self.settings.fit_windows))

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its line of the log."""
        settings, rate = self.settings, self.settings.rate(self.step)
        on_text = self.step < settings.text_steps
        if self.step == settings.text_steps and self.fresh:
            self._start()
        means: dict[str, list[float]] = {kind.name.lower(): [] for kind in Kind}
        gates, alignments = [], []
        tokens = z_tokens = positions = 0
        work = 0.0
        for i in range(settings.accumulate):
            examples, source = self.batches[self.step * settings.accumulate + i]
            predictions = self.objective.predict(
                examples,
                rate,
                adapter="text" if on_text else "read",
                fit_gate=self.step % settings.gate_every == 0 and not settings.reader_only,
                distil=settings.distillation > 0,
            )
            total = self.objective.total(predictions)
            if not torch.isfinite(total):
                raise DataError(f"the loss is not finite at step {self.step}; lower --lr.")
            torch.autograd.backward(total / settings.accumulate)
            for kind in Kind:
                means[kind.name.lower()].append(float(predictions.mean(kind).detach()))
            gates.append(float(predictions.gate.detach()))
            alignments.append(float(predictions.alignment.detach()))
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
            "alignment": _average(alignments),
            "grad_norm": round(norm, 4),
            "source_tokens": tokens,
            "z_tokens": z_tokens,
            "positions": positions,
            "work": round(work),
        }


def _average(values: Sequence[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return round(sum(known) / len(known), 5) if known else None
