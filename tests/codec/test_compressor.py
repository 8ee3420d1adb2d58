"""Compression and reading on the shipped checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PASSAGE
from safetensors.torch import load_file, save_file

from ztok_rag import CheckpointError, SequenceError, ZCompressor, ZReader, ZSequence, ZtokError
from ztok_rag.codec.model import DEFAULT_CHECKPOINT
from ztok_rag.codec.sequence import EMPTY

OTHER = (
    "She bought some bread and some milk, and then she went home again, and she sat down at the "
    "table, and she ate the bread and she drank the milk, and then she went to bed. "
)


def long_text(words: int) -> str:
    from pydoc_data.topics import topics

    return " ".join(" ".join(topics[name] for name in ("class", "with", "try")).split()[:words])


def test_rate_is_held_and_spans_cover_the_text(compressor: ZCompressor) -> None:
    text = long_text(2000)
    (z,) = compressor.compress([text], rate=4.0)
    assert z.source_tokens == compressor.count_tokens(text)
    assert abs(len(z) / (z.source_tokens / 4) - 1) < 0.10
    assert z.spans[0, 0] == 0 and z.spans[-1, 1] == len(text)
    np.testing.assert_array_equal(z.spans[1:, 0], z.spans[:-1, 1])
    assert len(z.windows) > 1 and z.depth == compressor.depth
    assert len(z.to_bytes()) / z.source_tokens <= 2.0


def test_count_follows_content(compressor: ZCompressor) -> None:
    tokenizer = compressor.tokenizer
    texts = []
    for text in (PASSAGE * 4, OTHER * 6):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:200]
        texts.append(tokenizer.decode(ids))
    dense, sparse = compressor.compress(texts, rate=2.0)
    assert dense.source_tokens == sparse.source_tokens
    assert len(dense) != len(sparse)


def test_rate_one_is_the_raw_text(compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], rate=1.0)
    ids = compressor.tokenizer(PASSAGE, add_special_tokens=False)["input_ids"]
    assert z.codes[:, 0].tolist() == ids and (z.codes[:, 1:] == EMPTY).all()
    base = compressor.model.base
    embeddings, added = compressor.model.split(compressor.reader._embed(["Text: ", z], 1))
    assert torch.equal(embeddings[-len(ids) :], base.embed(torch.tensor(ids)))
    assert not added.any()


def test_batching_and_order_do_not_matter(compressor: ZCompressor) -> None:
    texts = [PASSAGE, OTHER, PASSAGE[:60]]
    together = compressor.compress(texts, rate=4.0)
    apart = [compressor.compress([text], rate=4.0)[0] for text in texts]
    for a, b in zip(together, apart, strict=True):
        assert len(a) == len(b)
        # Padding may tip a code that lies on a boundary; anchors are exact.
        anchors = compressor.model.config.anchors
        assert (a.codes[:, :anchors] == b.codes[:, :anchors]).mean() > 0.98
        assert (a.codes == b.codes).mean() > 0.9


def test_embedding_comes_from_codes_alone(compressor: ZCompressor) -> None:
    ids = compressor.tokenizer(PASSAGE, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        encoded = compressor.model.encode([ids], 4.0)
    from_codes = compressor.model.quantizer.embed_codes(
        encoded.codes, compressor.model.base.embeddings
    )
    torch.testing.assert_close(from_codes, encoded.embeddings, atol=1e-4, rtol=1e-3)


def test_residual_codes_act_on_the_reader(compressor: ZCompressor) -> None:
    """Other codes, other states; and they act in the first pass only."""
    model = compressor.model
    ids = compressor.tokenizer(PASSAGE, add_special_tokens=False)["input_ids"]
    with torch.inference_mode(), model.base.adapter("read"):
        embeddings, added = model.split(model.encode([ids], 4.0).embeddings.unsqueeze(0))
        plain = model.base.decoder(inputs_embeds=embeddings).last_hidden_state
        with model.injecting(added):
            first = model.base.decoder(inputs_embeds=embeddings).last_hidden_state
            second = model.base.decoder(inputs_embeds=embeddings).last_hidden_state
    assert not torch.allclose(first, plain, atol=1e-2)
    torch.testing.assert_close(second, plain)


def test_long_text_is_split_never_cut(compressor: ZCompressor) -> None:
    sentence = "Stone by stone the wall went up. "
    text = sentence * (2 * compressor.reader.max_positions // 8)
    (z,) = compressor.compress([text], rate=16.0)
    assert z.source_tokens > compressor.reader.max_positions
    assert z.spans[-1, 1] == len(text) and max(z.windows) <= compressor.model.config.window


def test_bad_input_is_refused(compressor: ZCompressor) -> None:
    with pytest.raises(ZtokError, match="text 1 has no words"):
        compressor.compress([PASSAGE, "  \n"])
    with pytest.raises(ZtokError, match="put the text in a list"):
        compressor.compress(PASSAGE)
    for rate in (0.5, 100.0, float("nan")):
        with pytest.raises(ZtokError, match="rate must be"):
            compressor.compress([PASSAGE], rate=rate)
    assert compressor.compress([]) == []


def test_reader_answers_from_text(reader: ZReader) -> None:
    question = "\n\nQuestion: In what year was the lighthouse built?\nAnswer:"
    (answer,) = reader.generate([PASSAGE + question], max_new_tokens=8)
    assert "1873" in answer


def test_stream_joins_to_generate(reader: ZReader, compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], rate=2.0)
    prompt = [z, "\n\nQuestion: Who built the lighthouse?\nAnswer:"]
    (whole,) = reader.generate([prompt], max_new_tokens=12)
    assert "".join(reader.stream(prompt, max_new_tokens=12)) == whole
    (stopped,) = reader.generate([PASSAGE], max_new_tokens=12, adapter=None, stop=[" "])
    assert " " not in stopped.lstrip(" ") or stopped == ""
    assert "".join(reader.stream(PASSAGE, max_new_tokens=12, adapter=None, stop=[" "])) == stopped


def test_an_answer_has_at_least_one_token(reader: ZReader) -> None:
    end = reader.tokenizer.eos_token_id

    def prefer_end(head: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        logits[..., end] += 1000
        return logits

    hook = reader.model.base.head.register_forward_hook(prefer_end)
    try:
        answers = reader.generate([PASSAGE, "The capital of France is"], max_new_tokens=6)
        streamed = ["".join(reader.stream(PASSAGE, max_new_tokens=6))]
    finally:
        hook.remove()
    assert [len(reader.tokenizer(answer)["input_ids"]) for answer in answers] == [1, 1]
    assert streamed == answers[:1]


def test_z_tokens_decide_the_answer(reader: ZReader, compressor: ZCompressor) -> None:
    changes = {
        "1873": ("1642", "In what year was the lighthouse built?"),
        "whale oil": ("coal gas", "What did its lamp burn?"),
        "Tomas Berg": ("Olaf Carlsen", "Who was the last keeper?"),
    }
    for old, (new, question) in changes.items():
        zs = compressor.compress([PASSAGE, PASSAGE.replace(old, new)], rate=1.5)
        prompts = [[z, f"\n\nQuestion: {question}\nAnswer:"] for z in zs]
        first, second = reader.generate(prompts, max_new_tokens=8)
        assert first != second, question


def test_prompt_limits_and_costs(reader: ZReader, compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], rate=4.0)
    assert reader.count_tokens(["So: ", z]) == len(z) + reader.count_tokens("So: ")
    # What stands first is not read as itself, so something goes before Z-tokens.
    assert reader.count_tokens([z, " Why?"]) == 1 + len(z) + reader.count_tokens(" Why?")
    cost = reader.measure([z, " Why?"])
    assert cost.context_tokens == reader.count_tokens([z, " Why?"])
    assert cost.kv_bytes == cost.context_tokens * 23040 * reader.model.base.dtype.itemsize // 2
    assert 0 < cost.prefill_ms <= cost.ttft_ms
    with pytest.raises(ZtokError, match="retrieve fewer chunks"):
        reader.generate([[z] * (reader.max_positions // len(z) + 1)])
    with pytest.raises(ZtokError, match="no adapter 'write'"):
        reader.generate(["Hello"], adapter="write")
    with pytest.raises(ZtokError, match="empty"):
        reader.generate([""])


def test_sequence_of_another_checkpoint_is_refused(
    reader: ZReader, compressor: ZCompressor
) -> None:
    (z,) = compressor.compress([PASSAGE])
    foreign = ZSequence(z.codes, z.spans, z.windows, z.source_tokens, "0" * 16)
    with pytest.raises(SequenceError, match="made by checkpoint"):
        reader.generate([[foreign, " Why?"]])
    with pytest.raises(SequenceError, match="compress the text again"):
        compressor.decompress([foreign])


def test_checkpoint_for_another_base_or_damaged_is_refused(
    compressor: ZCompressor, tmp_path: Path
) -> None:
    base = compressor.model.base
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "base_fingerprint": "0" * 16}))
    with pytest.raises(CheckpointError, match="does not fit"):
        ZCompressor.from_pretrained(folder, base=base)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="malformed"):
        ZCompressor.from_pretrained(folder, base=base)
    with pytest.raises(CheckpointError, match="not a ztok checkpoint"):
        ZCompressor.from_pretrained(tmp_path / "nothing", base=base)


def test_checkpoint_files_are_safetensors_and_hold_what_the_config_says() -> None:
    names = {path.name for path in DEFAULT_CHECKPOINT.iterdir()}
    config = json.loads((DEFAULT_CHECKPOINT / "config.json").read_text())
    weights = {f"{name}.safetensors" for name in ("heads", *config["adapters"])}
    assert weights <= names and not {n for n in names if n.endswith((".bin", ".pt", ".pkl"))}
    read = load_file(DEFAULT_CHECKPOINT / "read.safetensors")
    assert all(t.dtype == torch.bfloat16 for t in read.values())
    assert any(t.abs().max() > 0 for name, t in read.items() if "lora_B" in name)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    heads = load_file(folder / "heads.safetensors")
    heads.pop(next(iter(heads)))
    save_file(heads, folder / "heads.safetensors")
    with pytest.raises(CheckpointError, match="incomplete or damaged"):
        ZCompressor.from_pretrained(folder, device="cpu")
