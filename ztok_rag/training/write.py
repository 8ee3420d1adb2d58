"""Training of the write head on states of the frozen LLM, which are computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ztok_rag.codec.model import ZModel
from ztok_rag.codec.write_head import BINS, WriteHead
from ztok_rag.training.data import TrainingData
from ztok_rag.training.run_state import claim_folder
from ztok_rag.training.stepping import StepTrainer
from ztok_rag.training.write_states import States, WriteSettings, collect_states

_DECAY = 0.8  # weight of the loss of each further token, in that of the one before
_PRIOR = 20.0  # chains, in how often the LLM agrees


def train_write(
    model: ZModel,
    data: TrainingData,
    output: Path,
    settings: WriteSettings | None = None,
    *,
    progress: bool = True,
) -> WriteHead:
    """Train a write head for a checkpoint, or go on with the run in `output`.

    `output` holds `log.jsonl` with a line per step, the states of the LLM, and the state from which
    the same settings resume exactly.

    Args:
        model: the checkpoint; it gets the head.
        data: passages.
        output: folder of the run.
        settings: see `WriteSettings`.
        progress: show bars with rate and time left.

    Raises:
        CheckpointError: `output` holds a run with other settings, or a damaged one.
        DataError: the data have too few tokens.
    """
    settings = settings or WriteSettings()
    own = {"model": model.fingerprint, "data": data.folder.name}
    claim_folder(output, settings.described() | own)
    states = collect_states(model, data, output / "states", settings, progress=progress)
    trainer = WriteTrainer(model, common_tokens(model, data, settings.vocabulary), states, settings)
    trainer.train(output, progress=progress)
    trainer.calibrate()
    model.set_writer(trainer.head)
    return trainer.head


def common_tokens(model: ZModel, data: TrainingData, count: int) -> Tensor:
    """Ids `[v]` of the commonest tokens of the data, no special ones."""
    counts = np.bincount(np.asarray(data.passages.ids), minlength=model.base.vocab_size)
    counts[model.base.tokenizer.all_special_ids] = 0
    order = np.argsort(-counts, kind="stable")[:count]
    return torch.from_numpy(np.sort(order[counts[order] > 0]))


class WriteTrainer(StepTrainer[Tensor]):
    """Trains a head on states, so that it gives each next token the chance that the LLM gives it.

    Learning from the LLM's own distribution rather than from the text (Hinton et al. 2015, arXiv
    1503.02531) makes drafts that the LLM confirms.
    """

    name = "head"

    def __init__(
        self, model: ZModel, vocabulary: Tensor, states: States, settings: WriteSettings
    ) -> None:
        base = model.base
        self.states = states
        self.settings = settings
        self.device = base.device
        torch.manual_seed(settings.seed)
        head = WriteHead(base.hidden_size, vocabulary, settings.width, settings.dropout)
        self.head = head.to(self.device)
        self.rows = base.head.weight[self.head.vocabulary].detach().float()  # type: ignore[index]
        self.table = base.embeddings.weight.detach()
        self.scale = model.config.embedding_scale
        optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.decay
        )
        super().__init__(self.head, dict(self.head.named_parameters()), optimizer, settings)
        self._epoch = -1
        self._order = np.empty(0, np.int64)  # of the states in that epoch

    def chain(self, places: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each further token: what the LLM gives, what the head gives, and the LLM's best.

        Args:
            places: `[n]` in the states.

        Yields:
            Probabilities and log probabilities `[n, v + 1]`, and ids `[n]`.
        """
        own, device = self.states, self.device
        memory = self.head.open(own.states[places].to(device).float())
        for depth in range(1, self.settings.depth + 1):
            token = own.ids[places + depth - 1].long().to(device)
            embedded = nn.functional.embedding(token, self.table).float() / self.scale
            memory = self.head.step(memory, embedded)
            with torch.no_grad():
                state = own.states[places + depth].to(device).float()
                mass = own.masses[places + depth].to(device)
                listed = (state @ self.rows.T - mass.unsqueeze(1)).exp()
                rest = (1 - listed.sum(1, keepdim=True)).clamp(min=0)
                teacher = torch.cat([listed, rest], dim=1)
            best = own.best[places + depth].long().to(device)
            yield teacher, self.head(memory, self.rows), best

    def batch(self, step: int) -> Tensor:
        """Places `[batch]` of a step; each epoch takes all once, in an order of its own."""
        size, starts = self.settings.batch, self.states.starts
        per_epoch = max(1, len(starts) // size)
        epoch, within = divmod(step, per_epoch)
        if epoch != self._epoch:  # among millions of states, an order takes longer than a step
            rng = np.random.default_rng([self.settings.seed, 1, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(starts))
        return starts[torch.from_numpy(self._order[within * size : (within + 1) * size])]

    def batches(self, first: int) -> Iterator[Tensor]:
        """Places of the steps from `first` on."""
        return (self.batch(step) for step in count(first))

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The mean loss of the tokens after each place, the nearer ones weighing more."""
        total = torch.zeros((), device=self.device)
        nats, agreed, weight, weights = [], [], 1.0, 0.0
        for teacher, own, best in self.chain(batch):
            each = -(teacher * own).sum(1).mean()
            total = total + weight * each
            nats.append(float(each.detach()))
            agreed.append(float(self._agrees(own, best).float().mean()))
            weights += weight
            weight *= _DECAY
        return total / weights, {
            "positions": (self.step + 1) * self.settings.batch,
            "nats": round(sum(nats) / len(nats), 5),
            "agreement": [round(share, 4) for share in agreed],
        }

    def _agrees(self, own: Tensor, best: Tensor) -> Tensor:
        """`[n]` whether the head's likeliest token is the LLM's; "none of these" never is."""
        place = own.argmax(1)
        ids = torch.cat([self.head.vocabulary, self.head.vocabulary.new_full((1,), -1)])
        return ids[place] == best

    @torch.no_grad()
    def evaluate(self, most: int = 2048) -> dict[str, Any]:
        """Scores on windows that are held out."""
        found = self._held(most)
        agreed = torch.stack([own for _, own, _ in found]).float()
        nats = torch.stack([own for _, _, own in found]).mean(1)
        run = 1 + float(agreed.cumprod(0).sum(0).mean())
        return {
            "held_out_nats": [round(own, 5) for own in nats.tolist()],
            "held_out_agreement": [round(own, 4) for own in agreed.mean(1).tolist()],
            "held_out_run": round(run, 4),
        }

    @torch.no_grad()
    def calibrate(self, most: int = 8192) -> None:
        """Note how often the LLM agrees, by the head's confidence, on windows held out."""
        found = self._held(most)
        confidence = torch.cat([own for own, _, _ in found])
        agreed = torch.cat([own for _, own, _ in found]).double().cpu()
        place = (confidence * BINS).long().clamp(max=BINS - 1).cpu()
        middle = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        right = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, agreed)
        tried = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, torch.ones_like(agreed))
        share = (right + _PRIOR * middle) / (tried + _PRIOR)
        self.head.agreement.copy_(share.cummax(0).values.float())

    def _held(self, most: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each further token: the head's confidence, whether the LLM agrees, and the nats."""
        self.head.eval()
        held = self.states.held
        places = held[torch.linspace(0, len(held) - 1, min(most, len(held))).long()]
        parts = [list(self._scores(part)) for part in torch.split(places, self.settings.batch)]
        return [
            (
                torch.cat([part[depth][0] for part in parts]),
                torch.cat([part[depth][1] for part in parts]),
                torch.cat([part[depth][2] for part in parts]),
            )
            for depth in range(self.settings.depth)
        ]

    def _scores(self, places: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for teacher, own, best in self.chain(places):
            yield own.amax(1).exp(), self._agrees(own, best), -(teacher * own).sum(1)
