"""The exported reader gives the same answers in plain transformers, from input embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.tiny_base import passages, tiny_model
from ztok_rag import SequenceError, ZCompressor, ZReader, ZtokError
from ztok_rag.codec.export import export_reader
from ztok_rag.codec.prompts import QA_TEMPLATE

QUESTION = "\n\nQuestion: Who built the lighthouse?\nAnswer:"


def greedy(model: torch.nn.Module, tokenizer: object, embeds: torch.Tensor, limit: int) -> str:
    """What plain transformers writes after input embeddings `[positions, hidden]`."""
    ids = model.generate(
        inputs_embeds=embeds.unsqueeze(0),
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        max_new_tokens=limit,
        min_new_tokens=1,
        do_sample=False,
    )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.parametrize("layout", ["llama", "qwen3", "gemma3"])
def test_any_base_is_exported(layout: str, tmp_path: Path) -> None:
    model = tiny_model(layout)
    torch.manual_seed(5)
    for parameter in model.base.adapter_parameters("read").values():  # an untrained one adds 0
        torch.nn.init.normal_(parameter, std=0.1)
    reader, compressor = ZReader(model), ZCompressor(model)
    texts = passages(3)
    zs = compressor.compress([text for text, _, _ in texts], 3.0)
    prompts = [
        [z, QA_TEMPLATE.removeprefix("{context}").format(question=question)]
        for z, (_, question, _) in zip(zs, texts, strict=True)
    ]
    wanted = reader.generate(
        prompts, max_new_tokens=12, copy=False, no_repeat_ngram_size=0, batch_size=1
    )
    export_reader(model, tmp_path / "reader")
    assert (
        reader.generate(
            prompts, max_new_tokens=12, copy=False, no_repeat_ngram_size=0, batch_size=1
        )
        == wanted
    )

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "reader", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reader")
    assert not [name for name in plain.state_dict() if "lora" in name]
    got = [greedy(plain, tokenizer, reader.to_embeds(p), 12) for p in prompts]
    assert got == wanted
    with torch.no_grad():
        inputs = reader.to_embeds(prompts[0]).unsqueeze(0)
        merged = plain(inputs_embeds=inputs).logits
        with model.base.adapter("read"):
            torch.testing.assert_close(merged, model.base.model(inputs_embeds=inputs).logits)
        with model.base.adapter(None):
            change = (merged - model.base.model(inputs_embeds=inputs).logits).abs().max()
    assert change > 0.1  # so the adapter is in it

    embeds = zs[0].to_embeds(reader)
    assert embeds.shape == (len(zs[0]), model.base.hidden_size)
    assert torch.equal(reader.to_embeds([zs[0]])[1:], embeds)
    with pytest.raises(SequenceError, match="checkpoint"):
        zs[0].to_embeds(ZReader(tiny_model("llama", 2100)))


def test_the_shipped_reader(compressor: ZCompressor, tmp_path: Path) -> None:
    from conftest import BAKERY, PASSAGE

    reader = compressor.reader
    prompts = [
        [*compressor.compress([BAKERY, PASSAGE], rate), QUESTION]
        for rate in (1.0, 3.0)
    ]  # fmt: skip
    export_reader(compressor.model, tmp_path / "reader", dtype=reader.model.base.dtype)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "reader", dtype=reader.model.base.dtype)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reader")
    wanted = reader.generate(
        prompts, max_new_tokens=12, copy=False, no_repeat_ngram_size=0, batch_size=1
    )
    assert [greedy(plain, tokenizer, reader.to_embeds(p), 12) for p in prompts] == wanted
    assert "Marta Lindqvist" in wanted[0]


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "reader").mkdir()
    (tmp_path / "reader" / "mine").write_text("text")
    with pytest.raises(ZtokError, match="name a new folder"):
        export_reader(tiny_model(), tmp_path / "reader")
    assert [p.name for p in tmp_path.rglob("*")] == ["reader", "mine"]


def test_in_half_precision(tmp_path: Path) -> None:
    (tmp_path / "reader").mkdir()
    export_reader(tiny_model(), tmp_path / "reader", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "reader" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert {p.name for p in tmp_path.iterdir()} == {"reader"}


def test_vllm_answers_from_prompt_embeddings(compressor: ZCompressor, tmp_path: Path) -> None:
    vllm = pytest.importorskip("vllm")
    from conftest import PASSAGE

    reader = compressor.reader
    (z,) = compressor.compress([PASSAGE], 2.0)
    prompt = [z, QUESTION]
    export_reader(compressor.model, tmp_path / "reader")
    engine = vllm.LLM(model=str(tmp_path / "reader"), enable_prompt_embeds=True)
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=8, min_tokens=1)
    (made,) = engine.generate([{"prompt_embeds": reader.to_embeds(prompt).cpu()}], settings)
    assert (
        made.outputs[0].text
        == reader.generate([prompt], max_new_tokens=8, copy=False, no_repeat_ngram_size=0)[0]
    )
