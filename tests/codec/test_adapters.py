"""Switching adapters: the same answers beside the weights and within them, and the plain base."""

from __future__ import annotations

import pytest
import torch

from ztok_rag import ZCompressor
from ztok_rag.codec import adapters
from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import READ


@pytest.fixture
def base(compressor: ZCompressor) -> BaseLM:
    return compressor.model.base


@torch.no_grad()
def states(base: BaseLM, name: str | None) -> torch.Tensor:
    ids = torch.arange(100, 120).unsqueeze(0)
    with base.adapter(name):
        return base.decoder(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def test_merged_weights_read_the_same(base: BaseLM, monkeypatch: pytest.MonkeyPatch) -> None:
    merged, plain = states(base, READ), states(base, None)
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "MOST_MERGED", 0)
        beside = states(base, READ)
        assert torch.equal(states(base, None), plain)
    assert torch.allclose(merged, beside, atol=1e-3)
    assert not torch.equal(merged, beside)
    assert not torch.allclose(merged, plain, atol=0.1)


def test_switches_nest(base: BaseLM) -> None:
    read, plain = states(base, READ), states(base, None)
    with base.adapter(READ):
        assert torch.equal(states(base, None), plain)
        assert torch.equal(states(base, READ), read)
        with pytest.raises(KeyError), base.adapter(None):
            raise KeyError
        ids = torch.arange(100, 120).unsqueeze(0)
        with torch.no_grad():
            again = base.decoder(input_ids=ids, use_cache=False).last_hidden_state
        assert torch.equal(again, read)
    weights = [m.weight for m in base.decoder.modules() if isinstance(m, torch.nn.Linear)]
    with base.adapter(READ):
        merged = [m.weight for m in base.decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert any(a is not b for a, b in zip(weights, merged, strict=True))
    after = [m.weight for m in base.decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert all(a is b for a, b in zip(weights, after, strict=True))


def test_a_changed_adapter_is_merged_again(base: BaseLM) -> None:
    before = states(base, READ)
    parameter = next(iter(base.adapter_parameters(READ).values()))
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.mul_(2)
        assert not torch.equal(states(base, READ), before)
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
    assert torch.equal(states(base, READ), before)


def test_what_inference_merged_passes_gradients_on(base: BaseLM) -> None:
    assert base._adapters is not None
    base._adapters._merged.clear()
    with torch.inference_mode():
        states(base, READ)
    torch.manual_seed(0)
    embeddings = torch.randn(1, 3, base.hidden_size, requires_grad=True)
    with base.adapter(READ):
        out = base.decoder(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    out.sum().backward()
    assert embeddings.grad is not None and bool(embeddings.grad.abs().sum() > 0)
