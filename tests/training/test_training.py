"""The trainer on the real base: it learns, holds its schedule, and resumes exactly."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PASSAGE
from safetensors.torch import load_file
from typer.testing import CliRunner

from ztok_rag import CheckpointError, DataError, ZCompressor, cli
from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import DEFAULT_CHECKPOINT, ZModel
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.codec.reader import ZReader
from ztok_rag.training.average import average_checkpoints
from ztok_rag.training.batches import BatchSettings, PackedBatches
from ztok_rag.training.cloze import BLANK, cloze
from ztok_rag.training.corpus import ask_questions, cut_passages, read_documents
from ztok_rag.training.examples import Composed, Example, Kind, Window
from ztok_rag.training.focused import FocusedBatches, FocusedSettings
from ztok_rag.training.held_out import held_out_batches, score_tokens
from ztok_rag.training.labels import find_uses
from ztok_rag.training.objective import Objective, TrainSettings
from ztok_rag.training.packing import pack
from ztok_rag.training.passages import Passage, read_passages
from ztok_rag.training.relevance import RelevanceSettings
from ztok_rag.training.run import load_data, run_training

QUESTIONS = [
    ("In what year was the lighthouse built?", "1873"),
    ("Who built the lighthouse?", "Marta Lindqvist"),
    ("Who was the last keeper?", "Tomas Berg"),
]
SMALL = {"rank": 4, "compressor_layers": 2}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [
        {"context": PASSAGE, "question": question, "answers": [answer]}
        for question, answer in QUESTIONS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(steps: int) -> TrainSettings:
    return TrainSettings(
        steps=steps, text_steps=1, ramp_steps=0, rates=(4.0,), warmup=1, lr=2e-3, gate_every=2
    )


BATCH = BatchSettings(batch_tokens=200, templates=(QA_TEMPLATE,), reconstruct=0.5, drop_context=0.0)


def train(records: Path, output: Path, steps: int) -> Path:
    return run_training(
        [str(records)],
        output,
        device="cpu",
        model_settings=SMALL,
        batch_settings=BATCH,
        settings=settings(steps),
        relevance=RelevanceSettings(steps=2),
        progress=False,
    )


def test_loss_falls_and_a_killed_run_resumes_exactly(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(records, tmp_path / "whole", 6)
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert [line["rate"] for line in log] == [1.0] + [4.0] * 5
    assert log[-1]["answer"] < log[1]["answer"]

    from ztok_rag.training import trainer

    original = trainer.Trainer.train_step

    def killed_at_three(self: trainer.Trainer) -> dict[str, object]:
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "train_step", killed_at_three)
    with pytest.raises(KeyboardInterrupt):
        train(records, tmp_path / "parts", 6)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="other settings"):
        train(records, tmp_path / "parts", 7)
    parts = train(records, tmp_path / "parts", 6)
    for name in ("heads", "compress", "read", "text"):
        a = load_file(whole / f"{name}.safetensors")
        b = load_file(parts / f"{name}.safetensors")
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 6

    trained = ZCompressor.from_pretrained(whole, device="cpu")
    assert trained.fingerprint != ZCompressor.from_pretrained(device="cpu").fingerprint


def test_branches_see_the_prefix_and_themselves_only(records: Path) -> None:
    # In bf16 the same sum in another order differs by more than the tolerance.
    base = BaseLM.load(device="cpu", dtype=torch.float32)
    batches = PackedBatches(read_passages(records), base.tokenizer, BATCH, seed=1)
    examples, source_tokens = batches[0]
    assert source_tokens == len(batches.sources[0])
    windows = [p for e in examples for p in e.prefix if isinstance(p, Window)]
    vectors = iter([base.embed(torch.tensor(window.ids)) for window in windows])
    packed = pack(examples, base.embed, vectors)
    base.add_adapter("read", rank=4)
    with torch.no_grad(), base.adapter("read"):
        together = base.decoder(
            inputs_embeds=packed.embeddings,
            attention_mask=packed.mask,
            position_ids=packed.positions,
        ).last_hidden_state
        start = sum(len(p.ids if isinstance(p, Window) else p) for p in examples[0].prefix)
        first, second = (len(b.prompt) + len(b.target) - 1 for b in examples[0].branches[:2])
        begin = start + first
        alone = torch.cat(
            [packed.embeddings[:, :start], packed.embeddings[:, begin : begin + second]], dim=1
        )
        apart = base.decoder(inputs_embeds=alone).last_hidden_state
    torch.testing.assert_close(
        together[:, begin : begin + second], apart[:, start:], atol=2e-2, rtol=2e-2
    )
    wanted = [token for branch in examples[0].branches for token in branch.target]
    assert packed.labels.tolist() == wanted
    asked = pack(
        examples, base.embed, iter([base.embed(torch.tensor(windows[0].ids))]), questions=True
    )
    assert asked.labels[asked.kinds != Kind.QUESTION].tolist() == wanted


def test_batches_depend_on_seed_and_index_alone(records: Path) -> None:
    tokenizer = BaseLM.load(device="cpu").tokenizer
    passages = read_passages(records)
    one, two = (PackedBatches(passages, tokenizer, BATCH, seed=7) for _ in range(2))
    two[5], two[1]
    assert one[3] == two[3] and one[0] != one[1]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"text": ""}',
        '{"question": "b"}',
        '{"context": "a"  "b"}',
        '{"context": "a", "question": "b"}',
        '{"context": "a", "question": "b", "answers": []}',
    ],
)
def test_malformed_record_names_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2"):
        read_passages(path)


def test_plain_text_folders_and_shares(tmp_path: Path, records: Path) -> None:
    (tmp_path / "notes.txt").write_text("One paragraph.\n\nAnother.\n")
    assert [p.text for p in load_data([str(tmp_path / "notes.txt")], 0)] == [
        "One paragraph.",
        "Another.",
    ]
    assert len(load_data([str(tmp_path)], 0)) == 3
    assert len(load_data([f"{tmp_path / 'notes.txt'}:0.5"], 0)) == 1
    for share in ("0", "2", "x"):
        with pytest.raises(DataError, match="share"):
            load_data([f"{tmp_path / 'notes.txt'}:{share}"], 0)
    with pytest.raises(DataError, match="cannot read"):
        load_data([str(tmp_path / "missing.jsonl")], 0)


def test_uses_mark_answers_and_what_questions_name(records: Path) -> None:
    (passage,) = read_passages(records)
    (uses,) = find_uses([passage])
    assert uses is not None
    for _, answer in QUESTIONS:
        at = PASSAGE.index(answer)
        assert uses[at : at + len(answer), 0].all()
    assert uses[PASSAGE.index("lighthouse"), 1] == 1
    assert not uses[PASSAGE.index("whale oil") : PASSAGE.index("whale oil") + 9].any()


def test_distillation_is_zero_for_a_reader_of_the_same_text(
    compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compressor.model
    # A Z-token for every token, whatever the content.
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, elasticity=0.0))
    passages = [Passage(PASSAGE, tuple((q, (a,)) for q, a in QUESTIONS))]
    batches = held_out_batches(passages, compressor.tokenizer)
    objective = Objective(model, TrainSettings(question_weight=0.2, distillation=1.0))
    # A context that stands first gets something before it, which raw text does not.
    start = compressor.tokenizer("Text: ", add_special_tokens=False)["input_ids"]
    examples = [Example([start, *e.prefix], e.branches) for e in batches[0][0]]
    with torch.no_grad():
        same = objective.predict(examples, 1.000001, adapter="text", distil=True)
        other = objective.predict(examples, 8.0, adapter="text", distil=True)
    assert same.divergence is not None and other.divergence is not None
    assert float(same.divergence.abs().max()) < 1e-3
    assert float(other.divergence.mean()) > 0.01
    assert same.kinds.tolist() == other.kinds.tolist()


def test_token_scores_add_up(compressor: ZCompressor) -> None:
    passages = [Passage(PASSAGE, ((QUESTIONS[0][0], (QUESTIONS[0][1],)),)), Passage(PASSAGE * 3)]
    batches = held_out_batches(passages, compressor.tokenizer)
    scores = score_tokens(Objective(compressor.model, TrainSettings()), batches, 4.0)
    assert set(scores) == {Kind.ANSWER, Kind.RECONSTRUCTION, Kind.CONTINUATION}
    answer = scores[Kind.ANSWER]
    tokens = compressor.tokenizer(" " + QUESTIONS[0][1], add_special_tokens=False)["input_ids"]
    assert answer.tokens.tolist() == [len(tokens) + 1]
    assert 0 <= answer.accuracy <= 1 and answer.mean_nats > 0


def test_a_corpus_alone_trains(compressor: ZCompressor, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "gull.txt").write_text(PASSAGE * 8)
    output = run_training(
        [],
        tmp_path / "run",
        corpus=[folder],
        init=DEFAULT_CHECKPOINT,
        device="cpu",
        batch_settings=BatchSettings(
            batch_tokens=200, window=64, continuation_tokens=24, templates=(QA_TEMPLATE,)
        ),
        settings=TrainSettings(
            steps=2, text_steps=0, ramp_steps=0, rates=(4.0,), distillation=0.5, warmup=1
        ),
        relevance=RelevanceSettings(steps=2),
        progress=False,
    )
    assert ZReader.from_pretrained(output, device="cpu").fingerprint != compressor.fingerprint
    questions = (tmp_path / "run" / "questions.jsonl").read_text().splitlines()
    assert len(questions) == len(set(cut_passages(PASSAGE * 8, compressor.reader, 56)))


def test_relevance_alone_trains_and_codes_stay(
    records: Path, compressor: ZCompressor, tmp_path: Path
) -> None:
    output = run_training(
        [str(records)],
        tmp_path / "run",
        init=DEFAULT_CHECKPOINT,
        device="cpu",
        batch_settings=BATCH,
        settings=TrainSettings(steps=0, text_steps=0, ramp_steps=0),
        relevance=RelevanceSettings(steps=2, warmup=1),
        progress=False,
    )
    trained = ZCompressor.from_pretrained(output, device="cpu")
    assert trained.fingerprint == compressor.fingerprint
    before, after = (c.model.relevance.score.weight for c in (compressor, trained))
    assert not torch.equal(before, after)


def train_reader(records: Path, output: Path) -> Path:
    return run_training(
        [str(records)],
        output,
        init=DEFAULT_CHECKPOINT,
        device="cpu",
        batch_settings=BATCH,
        settings=TrainSettings(steps=0, text_steps=0, ramp_steps=0, rates=(4.0,), warmup=1),
        relevance=RelevanceSettings(steps=1, warmup=1),
        reader_steps=3,
        focused=FocusedSettings(share=0.6, questions=2, rates=(4.0,)),
        progress=False,
    )


def test_reader_alone_trains_resumes_exactly_and_codes_stay(
    records: Path, compressor: ZCompressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ztok_rag.training import run, trainer

    whole = train_reader(records, tmp_path / "whole")
    original = trainer.Trainer.train_step

    def killed_at_two(self: trainer.Trainer) -> dict[str, object]:
        if self.step == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "train_step", killed_at_two)
    with pytest.raises(KeyboardInterrupt):
        train_reader(records, tmp_path / "parts")
    monkeypatch.undo()
    # What was trained before is not trained again.
    monkeypatch.setattr(run, "train_relevance", None)
    parts = train_reader(records, tmp_path / "parts")
    names = ("heads", "compress", "read", "text")
    one, two, old = (
        {name: load_file(folder / f"{name}.safetensors") for name in names}
        for folder in (whole, parts, DEFAULT_CHECKPOINT)
    )
    for name in names:
        assert all(torch.equal(one[name][key], two[name][key]) for key in one[name])
    same = {n for n in names if all(torch.equal(one[n][k], old[n][k]) for k in old[n])}
    assert same == {"compress", "text"}
    assert ZCompressor.from_pretrained(whole, device="cpu").fingerprint == compressor.fingerprint


def test_focused_batches_hold_what_a_query_would_show(compressor: ZCompressor) -> None:
    passages = [
        Passage(row["context"], ((row["question"], tuple(row["answers"])),))
        for i in range(6)
        for row in article(i)[:1]
    ]
    settings = dataclasses.replace(BATCH, templates=(QA_TEMPLATE,))
    focused = FocusedSettings(share=1.0, questions=4, passages=(3,), rates=(4.0,))
    one, two = (
        FocusedBatches(compressor.model, passages, settings, 1, focused, progress=False)
        for _ in range(2)
    )
    two[2]
    questions = []
    for index in range(3):
        examples, source_tokens = one[index]
        again, _ = two[index]
        total = 0
        for example, other in zip(examples, again, strict=True):
            parts = [p for p in example.prefix if isinstance(p, Composed)]
            others = [p for p in other.prefix if isinstance(p, Composed)]
            assert all(np.array_equal(a.codes, b.codes) for a, b in zip(parts, others, strict=True))
            tokens = sum(part.source_tokens for part in parts)
            assert len(parts) == 3
            assert sum(len(part.codes) for part in parts) <= round(tokens / 4)
            total += tokens
            (branch,) = example.branches
            assert branch.kind == Kind.ANSWER
            questions.append(compressor.tokenizer.decode(branch.prompt))
        assert source_tokens == total
    # Twelve questions of six: each of them twice.
    assert sorted(questions) == sorted(2 * list(set(questions))) and len(set(questions)) == 6


def test_questions_are_asked_once(compressor: ZCompressor, tmp_path: Path) -> None:
    cache = tmp_path / "questions.jsonl"
    first = ask_questions(compressor.reader, [PASSAGE], cache, per_text=2, progress=False)
    size = cache.stat().st_size
    with cache.open("a") as file:
        file.write('{"text": "cut sho')
    again = ask_questions(compressor.reader, [PASSAGE], cache, per_text=2, progress=False)
    assert again == first and cache.stat().st_size == size + 18
    assert first[0].text == PASSAGE and first[0].questions
    for question, (answer,) in first[0].questions:
        assert question.endswith("?") and answer


def test_a_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no documents"):
        read_documents(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        read_documents(tmp_path)


def article(number: int) -> list[dict[str, object]]:
    """Two questions on a paragraph of its own."""
    text = f"The mill of Norby number {number} was built by Ida Holm in {1800 + number}."
    return [
        {"context": text, "question": f"Who built mill {number}?", "answers": ["Ida Holm"]},
        {"context": text, "question": f"When, mill {number}?", "answers": [str(1800 + number)]},
    ]


def test_passages_share_a_prefix_with_distractors_that_nobody_asks_about(tmp_path: Path) -> None:
    path = tmp_path / "mills.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for i in range(12) for row in article(i)))
    tokenizer = BaseLM.load(device="cpu").tokenizer
    settings = BatchSettings(
        batch_tokens=240, templates=(QA_TEMPLATE,), reconstruct=0.0, drop_context=0.0,
        together=(3,), distractors=4, focus=1.0, focus_times=(4.0, 4.0),
    )  # fmt: skip
    batches = PackedBatches(read_passages(path), tokenizer, settings, seed=1)
    seen = []
    for index in range(batches.batches_per_epoch):
        examples, source_tokens = batches[index]
        windows = [p for e in examples for p in e.prefix if isinstance(p, Window)]
        assert source_tokens == sum(len(window.ids) for window in windows)
        for example in examples:
            parts = [p for p in example.prefix if isinstance(p, Window)]
            texts = [tokenizer.decode(part.ids) for part in parts]
            asked = [tokenizer.decode(branch.prompt) for branch in example.branches]
            numbers = [text.split("number ")[1].split(" ")[0] for text in texts]
            wanted = {question.split("mill ")[1].split("?")[0] for question in asked}
            assert len(set(numbers)) == len(numbers)
            assert wanted <= set(numbers)
            assert len(asked) == 2 * len(wanted)
            for number, part in zip(numbers, parts, strict=True):
                assert part.focus is not None
                places, times = part.focus
                assert bool(places) == (number in wanted) or len(parts) == 1
                assert times == pytest.approx(4.0)
                edges = [0, *(edge for place in places for edge in place), len(part.ids)]
                assert edges == sorted(edges)
                assert all(before < after for before, after in itertools.pairwise(edges[1:-1]))
            seen.append((len(wanted), len(numbers)))
    assert max(wanted for wanted, _ in seen) == 3
    assert max(all_ - wanted for wanted, all_ in seen) > 0


def test_questions_without_their_passage_have_no_part_of_it_in_focus(records: Path) -> None:
    tokenizer = BaseLM.load(device="cpu").tokenizer
    settings = dataclasses.replace(BATCH, reconstruct=0.0, drop_context=1.0, focus=1.0)
    examples, source_tokens = PackedBatches(read_passages(records), tokenizer, settings, seed=1)[0]
    assert source_tokens == 0 and all(example.branches for example in examples)
    assert not [p for example in examples for p in example.prefix if isinstance(p, Window)]


def test_parts_nobody_asks_about_get_fewer_z_tokens(compressor: ZCompressor) -> None:
    model = compressor.model
    ids = model.base.tokenizer(PASSAGE * 4, add_special_tokens=False)["input_ids"][:96]
    with torch.inference_mode():
        alike, focused, aside = (
            model.encode([ids], 4.0, [focus]).spans[0]
            for focus in (None, (((40, 56), (70, 74)), 8.0), ((), 8.0))
        )
    for start, end in ((40, 57), (70, 75)):
        assert list(focused[start:end]) == list(range(focused[start], focused[start] + end - start))
    assert aside[-1] + 1 <= 96 / 32 + 1 < alike[-1]


def test_what_a_cloze_leaves_out_fills_its_blank() -> None:
    for seed in range(20):
        found = cloze(PASSAGE, np.random.default_rng(seed))
        assert found is not None
        question, answer = found
        shown = question.split('"', 1)[1].rsplit('"', 1)[0]
        assert shown.count(BLANK) == 1
        assert shown.replace(BLANK, answer) in PASSAGE
    assert cloze("Oh. So it is!", np.random.default_rng(0)) is None
    assert cloze("", np.random.default_rng(0)) is None


def test_cloze_questions_are_asked_of_text_with_and_without_questions(records: Path) -> None:
    tokenizer = BaseLM.load(device="cpu").tokenizer
    settings = dataclasses.replace(BATCH, cloze=1.0, batch_tokens=2000)
    passages = [*read_passages(records), Passage(PASSAGE)]
    (batch, _) = PackedBatches(passages, tokenizer, settings, seed=1)[0]
    assert len(batch) > 1
    for example in batch:
        prompts = [tokenizer.decode(b.prompt) for b in example.branches if b.kind == Kind.ANSWER]
        assert any(BLANK in prompt for prompt in prompts)


def test_a_line_of_records_may_hold_any_character_but_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    row = {"text": "One\u2028two\x85three."}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_passages(path) == [Passage("One\u2028two\x85three.")]


@pytest.fixture
def two_checkpoints(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "one", tmp_path / "two"]
    base = BaseLM.load(device="cpu")
    model = ZModel.create(base, **SMALL)
    for number, folder in enumerate(folders):
        model.set_mean_information(2.0 + number)
        with torch.no_grad():
            for parameter in base.adapter_parameters("read").values():
                parameter.fill_(float(number))
            for parameter in model.gate.parameters():
                parameter.fill_(1.0 + number)
        model.save_pretrained(folder)
    return folders


def test_average_of_checkpoints(two_checkpoints: list[Path], tmp_path: Path) -> None:
    arguments = ["average", *map(str, two_checkpoints), "-o", str(tmp_path / "mean")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    model = ZModel.from_pretrained(tmp_path / "mean", device="cpu")
    read = model.base.adapter_parameters("read").values()
    assert all(bool((parameter == 0.5).all()) for parameter in read)
    assert all(bool((parameter == 1.5).all()) for parameter in model.gate.parameters())
    assert model.config.mean_information == pytest.approx(2.5)
    with pytest.raises(DataError, match="there already"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


def test_what_cannot_be_averaged_is_refused(two_checkpoints: list[Path]) -> None:
    first, second = two_checkpoints
    with pytest.raises(DataError, match="two"):
        average_checkpoints([first])
    with pytest.raises(CheckpointError, match="other settings"):
        average_checkpoints([first, DEFAULT_CHECKPOINT])
    (second / "read.safetensors").unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        average_checkpoints([first, second])
