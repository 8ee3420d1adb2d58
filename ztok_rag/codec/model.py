"""`ZModel`: base LLM, adapters, gate, quantizer and relevance model as one checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.config import ZConfig
from ztok_rag.codec.quantizer import ZQuantizer
from ztok_rag.codec.relevance import RelevanceModel
from ztok_rag.codec.segment import (
    FloatArray,
    IntArray,
    outlast,
    segment,
    select_anchors,
    target_count,
)
from ztok_rag.codec.sequence import EMPTY
from ztok_rag.errors import CheckpointError

QUESTION_SHARE = 0.3
"""Worth of a token that a question names, beside one that is part of an answer."""

Focus = tuple[tuple[tuple[int, int], ...], float]
"""Parts `[start, end)` of a window's tokens, in order and apart, to spend so many times as many
Z-tokens on, and as many times fewer on the others."""

Foci = Sequence[Focus | None] | None
"""A focus for each window; `None` spends alike."""

DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "default"


@dataclass
class Encoded:
    """The Z-tokens of a batch of windows, laid end to end.

    Attributes:
        embeddings: `[sum(counts), (1 + inject_layers) * hidden]` for the reader, in the base's
            dtype, as `ZQuantizer.embed` returns them.
        codes: int64 `[sum(counts), depth]`.
        counts: Z-tokens of each window.
        spans: span index of each token, `[n]` per window.
        information: `[sum(n)]` predicted surprisal of the real tokens, in nats, with gradient.
        uses: `[sum(n), 2]` logits that a token is part of an answer, and that a question names
            it, with gradient.
        states: `[sum(counts), inject_layers * hidden]` the compressor's states of each Z-token's
            first anchor at the input of the layers where residual codes act; `None` without.
        features: `[sum(counts), 2 * hidden]` of the spans, which the residual codes quantize.
    """

    embeddings: Tensor
    codes: Tensor
    counts: list[int]
    spans: list[IntArray]
    information: Tensor
    uses: Tensor
    states: Tensor | None = None
    features: Tensor | None = None


class ZModel(nn.Module):
    """The trained parts of a checkpoint around a base LLM."""

    def __init__(self, base: BaseLM, config: ZConfig) -> None:
        super().__init__()
        # The base is not a submodule: its weights are no part of the checkpoint.
        object.__setattr__(self, "base", base)
        self.base: BaseLM
        self.config = config
        self.gate = nn.Sequential(
            nn.LayerNorm(base.hidden_size, elementwise_affine=False),
            nn.Linear(base.hidden_size, 3),
        )
        self.quantizer = ZQuantizer(config, base.hidden_size)
        dims = len(config.residual_levels) * config.residual_depth
        self.relevance = RelevanceModel(base.hidden_size, dims)
        for name in config.adapters:
            layers = config.compressor_layers if name == "compress" else None
            base.add_adapter(name, rank=config.rank, layers=layers)
        self.to(base.device)
        short = base.first_layers(config.compressor_layers)
        object.__setattr__(self, "_short_decoder", short)
        self._fingerprint: str | None = None

    @classmethod
    def create(cls, base: BaseLM, **settings: object) -> ZModel:
        """A fresh, untrained model on `base`; `settings` are fields of `ZConfig`."""
        layers = int(settings.get("compressor_layers", max(1, 2 * base.num_layers // 3)))  # type: ignore[call-overload]
        defaults: dict[str, object] = {
            "compressor_layers": layers,
            "inject_layers": tuple(sorted({layers // 3, 2 * layers // 3, layers})),
        }
        if settings.get("residual_depth") == 0:
            defaults["inject_layers"] = ()
        config = ZConfig(
            base=base.name,
            base_fingerprint=base.fingerprint(),
            **{**defaults, **settings},  # type: ignore[arg-type]
        )
        return cls(base, config)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        *,
        base: str | Path | BaseLM | None = None,
        device: str | torch.device | None = None,
    ) -> ZModel:
        """Load a checkpoint and the base LLM it belongs to.

        Args:
            checkpoint: folder that `save_pretrained` wrote; `None` is the one shipped.
            base: the base LLM, its id or folder; `None` is the one named in the checkpoint.
            device: `None` is CUDA when there is one, else the CPU.

        Raises:
            CheckpointError: missing or damaged, or trained on another base.
        """
        folder = Path(checkpoint or DEFAULT_CHECKPOINT)
        config = ZConfig.load(folder)
        if not isinstance(base, BaseLM):
            base = BaseLM.load(base or config.base, device=device)
        if base.fingerprint() != config.base_fingerprint:
            raise CheckpointError(
                f"the checkpoint {folder} was trained on {config.base} and does not fit "
                f"{base.name}; use that base, or train a checkpoint for this one with "
                "`ztok train --base`."
            )
        model = cls(base, config)
        try:
            model.load_state(*read_state(folder, config.adapters))
        except (RuntimeError, KeyError) as error:
            raise _damaged(folder, error) from error
        return model.eval()

    def add_text_adapter(self) -> None:
        """Add the untrained adapter `text`, for a reader of raw text, if there is none."""
        if "text" not in self.config.adapters:
            self.base.add_adapter("text", rank=self.config.rank)
            adapters = (*self.config.adapters, "text")
            self.config = dataclasses.replace(self.config, adapters=adapters)

    def load_state(self, heads: dict[str, Tensor], adapters: dict[str, dict[str, Tensor]]) -> None:
        """Copy weights in, exactly those that the model has."""
        self.load_state_dict({name: tensor.float() for name, tensor in heads.items()})
        for name, tensors in adapters.items():
            self.load_adapter(name, tensors)

    @torch.no_grad()
    def load_adapter(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Copy one adapter's weights in.

        Raises:
            KeyError: they are not of the layers that the adapter has.
        """
        parameters = self.base.adapter_parameters(name)
        if parameters.keys() != tensors.keys():
            raise KeyError(f"adapter {name} has other layers than the base")
        for path, parameter in parameters.items():
            parameter.copy_(tensors[path])
        self._fingerprint = None

    @torch.no_grad()
    def copy_adapter(self, source: str, target: str) -> None:
        """Copy one adapter's weights into another, in the layers that the latter has."""
        tensors = self.base.adapter_parameters(source)
        for path, parameter in self.base.adapter_parameters(target).items():
            parameter.copy_(tensors[path])
        self._fingerprint = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Weights in bf16 on the CPU: the heads, and each adapter's by module path."""

        def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                path: (t.to(torch.bfloat16) if t.is_floating_point() else t).detach().cpu()
                for path, t in tensors.items()
            }

        adapters = {
            name: pack(dict(self.base.adapter_parameters(name))) for name in self.config.adapters
        }
        return pack(self.state_dict()), adapters

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights to `folder`; a folder already there is replaced whole."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        heads, adapters = self.state()
        self.config.save(temporary)
        save_file(heads, temporary / "heads.safetensors")
        for name, tensors in adapters.items():
            save_file(tensors, temporary / f"{name}.safetensors")
        temporary.chmod(0o755)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything that decides what a code means."""
        if self._fingerprint is None:
            heads, adapters = self.state()
            digest = hashlib.blake2b(self.config.base_fingerprint.encode(), digest_size=8)
            for tensors in (heads, adapters["compress"]):
                for name in sorted(name for name in tensors if not is_relevance(name)):
                    digest.update(name.encode())
                    digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def set_mean_information(self, value: float) -> None:
        """Record the training text's mean predicted surprisal, in nats per token."""
        self.config = dataclasses.replace(self.config, mean_information=value)

    def run_first_layers(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """States `[batch, n, hidden]` after the compressor's layers, by the adapter in force."""
        out = self._short_decoder(  # type: ignore[operator]
            inputs_embeds=embeddings, attention_mask=mask, use_cache=False
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    @property
    def sink(self) -> int:
        """Token id that goes before what would otherwise start with Z-tokens.

        Attention dwells on a sequence's first position whatever it holds (Xiao et al. 2023), so
        a Z-token there could not be read as itself.
        """
        tokenizer = self.base.tokenizer
        first = tokenizer.bos_token_id
        return int(tokenizer.eos_token_id if first is None else first)

    def hidden_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Compressor states of token ids `[batch, n]`, in one pass.

        Returns:
            `[batch, n, hidden]` each: at the input of every layer in `inject_layers`, and after
            the last layer of the compressor.
        """
        start = ids.new_full((len(ids), 1), self.sink)
        ids = torch.cat([start, ids], dim=1)
        mask = torch.cat([torch.ones_like(start), mask], dim=1)
        found: dict[int, Tensor] = {}

        def keep(layer: int, hidden: Tensor) -> Tensor:
            found[layer] = hidden[:, 1:]
            return hidden

        wanted = self.config.inject_layers
        with self.base.adapter("compress"), self.base.at_layers(wanted, keep):
            last = self.run_first_layers(self.base.embed(ids), mask)[:, 1:]
        return [*(found.get(layer, last) for layer in wanted), last]

    def embed_text(self, ids: Tensor) -> Tensor:
        """Reader inputs of token ids `[n]`, as wide as those of Z-tokens."""
        layers, hidden = len(self.config.inject_layers), self.base.hidden_size
        return nn.functional.pad(self.base.embed(ids), (0, layers * hidden))

    def split(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Reader inputs `[..., width]` as input embeddings and what to pass to `injecting`."""
        hidden = self.base.hidden_size
        return inputs[..., :hidden], inputs[..., hidden:]

    @contextmanager
    def injecting(self, added: Tensor, seen: list[Tensor] | None = None) -> Iterator[None]:
        """Let residual codes act in the next forward pass of the base, and in no later one.

        Args:
            added: `[batch, n, inject_layers * hidden]`, zero at text.
            seen: takes the states `[batch, n, hidden]` at each of the layers, after the codes
                have acted.
        """
        layers = self.config.inject_layers
        if not layers or (seen is None and not bool(added.any())):
            yield
            return
        parts = dict(zip(layers, added.chunk(len(layers), dim=-1), strict=True))

        def act(layer: int, hidden: Tensor) -> Tensor:
            part = parts.pop(layer, None)
            if part is not None:
                hidden = self.quantizer.inject(layers.index(layer), hidden, part)
                if seen is not None:
                    seen.append(hidden)
            return hidden

        with self.base.at_layers(layers, act):
            yield

    def encode(self, windows: list[list[int]], rate: float, focus: Foci = None) -> Encoded:
        """Compress windows of token ids in one forward pass.

        Args:
            windows: token ids, at least one each, padded here into one batch.
            rate: source tokens per Z-token wanted.
            focus: for each window, what to spend more on; `None` spends alike.
        """
        device = self.base.device
        lengths = [len(window) for window in windows]
        ids = torch.zeros(len(windows), max(lengths), dtype=torch.long)
        for row, window in enumerate(windows):
            ids[row, : len(window)] = torch.tensor(window)
        mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
        hidden = self.hidden_states(ids.to(device), mask.to(device).long())
        *inner, flat_hidden = (states[mask.to(device)] for states in hidden)
        flat_ids = ids[mask].to(device)
        gate = self.gate(flat_hidden.float())
        scores, uses = gate[:, 0], gate[:, 1:]
        information = nn.functional.softplus(scores)
        nats, weights = self._weigh(windows, information, uses)
        spans, counts, flat_picked, several = self._spend(lengths, nats, weights, rate, focus)
        picked = torch.from_numpy(flat_picked).to(device)
        anchors = flat_ids[picked.clamp(min=0)].masked_fill(picked < 0, -1)
        anchors = self.quantizer.anchor_codes(anchors, self.base.embeddings.weight)  # type: ignore[arg-type]
        starts = np.cumsum([0, *counts[:-1]])
        owner = np.concatenate([own + at for own, at in zip(spans, starts, strict=True)])
        features = self._pool(flat_hidden, scores, torch.from_numpy(owner).to(device), picked[:, 0])
        embeddings, codes = self._embed_spans(
            anchors, features, torch.from_numpy(several).to(device)
        )
        states = None
        if inner:
            states = torch.cat([part[picked[:, 0]] for part in inner], dim=-1).detach()
        return Encoded(embeddings, codes, counts, spans, information, uses, states, features)

    def outlasted(
        self, windows: list[list[int]], encoded: Encoded, rates: Sequence[float]
    ) -> IntArray:
        """How many of some rates, from the first on, each Z-token outlasts.

        Args:
            windows: that were encoded.
            encoded: their Z-tokens, at a rate below the others.
            rates: rising.

        Returns:
            `[sum(counts)]`. About `n / rate` of a window's Z-tokens outlast a rate, one at least.
        """
        lasts, at = [], 0
        nats, weights = self._weigh(windows, encoded.information, encoded.uses)
        for window, spans in zip(windows, encoded.spans, strict=True):
            here = slice(at, at + len(window))
            at += len(window)
            counts = [self._count(nats[here], rate) for rate in rates]
            lasts.append(outlast(weights[here], spans, counts, self.config.max_span))
        return np.concatenate(lasts)

    def _spend(
        self,
        lengths: Sequence[int],
        nats: FloatArray,
        weights: FloatArray,
        rate: float,
        focus: Foci,
    ) -> tuple[list[IntArray], list[int], IntArray, NDArray[np.bool_]]:
        """Where the Z-tokens of a batch of windows go.

        Returns:
            The span of each token, `[n]` per window; the spans of each window; the positions of
            their anchors in the batch, `[n_z, anchors]`; and whether each has residual codes.
        """
        spans, counts, picked = [], [], []
        several: list[bool] = []
        offset = 0
        for length, chosen_parts in zip(lengths, focus or [None] * len(lengths), strict=True):
            own, count = [], 0
            for a, b, part_rate in _regions(length, chosen_parts, rate):
                here = slice(offset + a, offset + b)
                part, chosen = self._allocate(nats[here], weights[here], part_rate)
                own.append(part + count)
                picked.append(np.where(chosen < 0, -1, chosen + offset + a))
                made = int(part[-1]) + 1
                several += [made < b - a] * made
                count += made
            spans.append(np.concatenate(own))
            counts.append(count)
            offset += length
        return spans, counts, np.concatenate(picked), np.array(several)

    def _weigh(
        self, windows: list[list[int]], information: Tensor, uses: Tensor
    ) -> tuple[FloatArray, FloatArray]:
        """The surprisal of all tokens, `[sum(n)]` nats, and what the spans share out.

        The latter is the square of how likely the token is to be asked for, times a power of its
        surprisal: what nobody asks for, or everybody would guess, is summed up in long spans.
        """
        nats = information.detach().double().cpu().numpy() + 1e-3
        answer, question = uses.detach().double().sigmoid().cpu().numpy().T
        asked = (answer + QUESTION_SHARE * question) ** 2 + 1e-4
        return nats, asked * nats**self.config.surprisal_power

    def _embed_spans(
        self, anchors: Tensor, features: Tensor, several: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the reader gets, as `ZQuantizer.embed` returns it, and codes `[n_z, depth]`.

        Args:
            anchors: `[n_z, anchors]` codes, -1 where empty.
            features: `[n_z, 2 * hidden]` of the spans.
            several: bool `[n_z]`: the text around is not compressed token by token.
        """
        codes = anchors.masked_fill(anchors < 0, EMPTY)
        quantized = None
        if self.config.residual_depth:
            quantized, residual = self.quantizer.encode_residual(features)
            residual = residual.masked_fill(~several.unsqueeze(-1), EMPTY)
            codes = torch.cat([codes, residual], dim=1)
        return self.quantizer.embed(anchors, self.base.embeddings, quantized, several), codes

    def _allocate(
        self, nats: FloatArray, weights: FloatArray, rate: float
    ) -> tuple[IntArray, IntArray]:
        """Spans and anchor positions of one window."""
        spans = segment(weights, self._count(nats, rate), self.config.max_span)
        return spans, select_anchors(weights, spans, self.config.anchors)

    def _count(self, nats: FloatArray, rate: float) -> int:
        """How many Z-tokens one window, or a part of one, gets."""
        return target_count(nats, rate, self.config.mean_information, self.config.elasticity)

    @staticmethod
    def _pool(hidden: Tensor, scores: Tensor, owner: Tensor, anchor: Tensor) -> Tensor:
        """Span features `[n_z, 2 * hidden]`: the anchor's state, and the gate-weighted mean.

        Args:
            hidden: `[n, hidden]` compressor states of the tokens.
            scores: `[n]` of the gate.
            owner: `[n]` span of each token.
            anchor: `[n_z]` the token that each span's first anchor names.
        """
        hidden = hidden.float()
        weight = (scores - scores.detach().max()).exp() + 1e-6
        total = torch.zeros(len(anchor), device=hidden.device).index_add(0, owner, weight)
        share = (weight / total[owner]).unsqueeze(-1)
        pooled = torch.zeros(len(anchor), hidden.shape[1], device=hidden.device)
        pooled = pooled.index_add(0, owner, hidden * share)
        normed = (nn.functional.layer_norm(x, x.shape[-1:]) for x in (hidden[anchor], pooled))
        return torch.cat(list(normed), dim=-1)


def is_relevance(name: str) -> bool:
    """Whether a weight is of the relevance model, which chooses among codes and makes none."""
    return name.startswith("relevance.")


def read_state(
    folder: Path, adapters: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The weights in a checkpoint's folder, as `ZModel.state` returns them.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        heads = load_file(folder / "heads.safetensors")
        return heads, {name: load_file(folder / f"{name}.safetensors") for name in adapters}
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} is incomplete or damaged ({error}); copy or install it again."
    )


def _regions(length: int, focus: Focus | None, rate: float) -> list[tuple[int, int, float]]:
    """The parts `[start, end)` of a window that have a rate of their own, and that rate."""
    if focus is None:
        return [(0, length, rate)]
    parts, times = focus
    regions, at = [], 0
    for start, end in (*parts, (length, length)):
        regions += [(at, start, rate * times), (start, end, max(1.0, rate / times))]
        at = end
    return [(a, b, own) for a, b, own in regions if b > a]
