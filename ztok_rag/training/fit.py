"""Closed-form starts of gate and quantizer, which training then betters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ztok_rag.codec.model import Encoded, ZModel
from ztok_rag.codec.quantizer import normalize
from ztok_rag.training.examples import Window
from ztok_rag.training.objective import surprisal, use_loss

RATES = (2.0, 4.0, 8.0, 4.0)


def fit_heads(model: ZModel, windows: Sequence[Window]) -> float:
    """Fit the gate, then the quantizer; returns what `fit_gate` does."""
    correlation = fit_gate(model, windows)
    fit_quantizer(model, windows)
    return correlation


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
            hidden = model.hidden_states(ids, torch.ones_like(ids))[-1][0]
            states.append(model.gate[0](hidden.float()))
    x, y = torch.cat(states), torch.cat(targets)
    wanted = torch.log(torch.expm1(y.clamp(0.05, 20.0)))  # inverse of the gate's softplus
    bias = wanted.mean()
    weight = _least_squares(x, wanted - bias, ridge)
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


@torch.no_grad()
def fit_quantizer(model: ZModel, windows: Sequence[Window], *, ridge: float = 300.0) -> None:
    """Start the residual codes as linear estimates of what the reader's states lack.

    A Z-token's state in the reader, where it has other Z-tokens around it, and the compressor's
    of the same source token in the full text differ. What of that is no linear function of the
    former is regressed on the span's features at reduced rank, which gives the encoder; then
    the maps `M_j` and `D_j` are fitted to it by least squares, one layer after the other, since
    what one adds changes the states at the next.
    """
    layers = len(model.config.inject_layers)
    if not (model.config.residual_depth and layers and windows):
        return
    quantizer = model.quantizer
    for linear in (quantizer.decoder, *quantizer.mixes):
        linear.weight.zero_()
    quantizer.decoder.bias.zero_()
    batches = [
        model.encode([list(w.ids) for w in windows[i : i + 8]], rate)
        for i, rate in zip(range(0, len(windows), 8), itertools.cycle(RATES))
    ]
    wanted = torch.cat([b.states for b in batches if b.states is not None]).float()
    wanted = wanted.view(len(wanted), layers, -1)
    low, high = _quantiles(wanted, 0.16), _quantiles(wanted, 0.84)
    quantizer.scale.copy_(((high - low) / 2).clamp(min=1e-3))

    def lacking(states: Tensor, layer: int) -> Tensor:
        gap: Tensor = (wanted[:, layer] - states) / quantizer.scale[layer]
        return gap.clamp(-10, 10)

    states = _reader_states(model, batches)
    gaps = []
    for layer in range(layers):
        normed, gap = normalize(states[layer]), lacking(states[layer], layer)
        gaps.append(gap - normed @ _least_squares(normed, gap, ridge))
    features = torch.cat([b.features for b in batches if b.features is not None]).float()
    residual = torch.cat(gaps, dim=1)
    centre = residual.mean(0)
    mean = features.mean(0)
    map_ = _least_squares(features - mean, residual - centre, ridge)
    fitted = (features - mean) @ map_
    dims = quantizer.encoder.out_features
    directions = torch.linalg.eigh(fitted.T @ fitted).eigenvectors[:, -dims:]
    map_ = map_ @ directions
    map_ = map_ / ((features - mean) @ map_).std(0).clamp(min=1e-6)
    quantizer.encoder.weight.copy_(map_.T)
    quantizer.encoder.bias.copy_(-mean @ map_)

    quantized, _ = quantizer.encode_residual(features)
    size = model.base.hidden_size
    for layer in range(layers):
        state = _reader_states(model, batches)[layer]
        inputs = torch.cat([normalize(state), quantized, torch.ones_like(quantized[:, :1])], dim=1)
        solved = _least_squares(inputs, lacking(state, layer), ridge)
        mix, decode, bias = torch.split(solved, [size, dims, 1])
        rows = slice(layer * size, (layer + 1) * size)
        quantizer.mixes[layer].weight.copy_(mix.T)  # type: ignore[union-attr,operator]
        quantizer.decoder.weight[rows] = decode.T
        quantizer.decoder.bias[rows] = bias[0]


def _reader_states(model: ZModel, batches: Sequence[Encoded]) -> list[Tensor]:
    """`[n_z, hidden]` of each injection layer, of a reader with one window at a time."""
    size = model.base.hidden_size
    found: list[list[Tensor]] = []
    for batch in batches:
        added = batch.embeddings[:, size:]
        if model.quantizer.decoder.weight.any() and batch.features is not None:
            quantized, _ = model.quantizer.encode_residual(batch.features)
            added = model.quantizer.decoder(quantized).to(added.dtype)
        inputs = torch.cat([batch.embeddings[:, :size], added], dim=1)
        sink = model.embed_text(torch.tensor([model.sink], device=inputs.device))
        rows = [torch.cat([sink, part]) for part in torch.split(inputs, batch.counts)]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        places = torch.arange(padded.shape[1], device=padded.device)
        counts = torch.tensor(batch.counts, device=padded.device).unsqueeze(1)
        embeddings, added = model.split(padded)
        seen: list[Tensor] = []
        with model.base.adapter("read"), model.injecting(added, seen):
            last = model.run_first_layers(embeddings, (places <= counts).long())
        is_z = (places > 0) & (places <= counts)
        seen = [*seen, last][: len(model.config.inject_layers)]
        found.append([states[is_z].float() for states in seen])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _least_squares(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    gram = x.T @ x + ridge * torch.eye(x.shape[1], device=x.device)
    solution: Tensor = torch.linalg.solve(gram, x.T @ y)
    return solution


def _quantiles(values: Tensor, share: float) -> Tensor:
    """Over the first dimension; by sorting, as `torch.quantile` takes few values only."""
    return values.sort(dim=0).values[int(share * (len(values) - 1))]
