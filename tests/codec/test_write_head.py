"""The write head, its file in a checkpoint, and what a checkpoint without one says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from tests.training.tiny_base import tiny_base, tiny_model
from ztok_rag import ZReader
from ztok_rag.codec.chains import Chains
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.speculation import Draft, Trust, drafts_by
from ztok_rag.codec.write_head import BINS, WRITE_FILE, WriteHead
from ztok_rag.codec.writing import ZGenerator
from ztok_rag.errors import CheckpointError, ZtokError
from ztok_rag.files import write_digests


def make_head(seed: int = 0, vocabulary: int = 50) -> WriteHead:
    torch.manual_seed(seed)
    return WriteHead(32, torch.arange(3, 3 + vocabulary), width=16)


def test_scores_are_log_probabilities_that_depend_on_all_tokens_before() -> None:
    base = tiny_base()
    chains = Chains(base, make_head(), 0.1)
    states = torch.randn(3, 32)
    scores = []
    for first in (5, 6):
        memory, found = chains.extend(chains.open(states), [first] * 3)
        torch.testing.assert_close(found.exp().sum(1), torch.ones(3))
        scores.append(chains.extend(memory, [7] * 3)[1])
    assert scores[0].shape == (3, 51)
    assert not torch.allclose(scores[0], scores[1], atol=1e-3)


def test_the_chance_of_agreement_follows_the_table() -> None:
    head = make_head()
    head.agreement.copy_(torch.linspace(0.2, 0.9, BINS))
    chances = head.chance(torch.tensor([0.0, 0.5 / BINS, 1.0 / BINS, 0.5, 1.0]))
    step = 0.7 / (BINS - 1)
    want = torch.tensor([0.2, 0.2, 0.2 + step / 2, 0.55, 0.9])
    torch.testing.assert_close(chances, want)


def test_drafts_stop_where_they_are_not_likely() -> None:
    chains = Chains(tiny_base(), make_head(), 0.1)
    states = torch.randn(2, 32)
    chains.head.agreement.fill_(1.0)
    assert [len(d) for d in chains.draft(states, [5, 6], [4, 0], [1.0, 1.0])] == [4, 0]
    chains.head.agreement.fill_(0.5)  # 0.5 and 0.25 are likely enough, 0.125 is not
    drafts = chains.draft(states, [5, 6], [9, 9], [1.0, 0.5])
    assert [len(d) for d in drafts] == [2, 1]
    assert drafts[0].is_guess and drafts[0].chances == pytest.approx([0.5, 0.5])


def test_trust_in_guesses_is_learned() -> None:
    trust, draft = Trust(), Draft([1, 2, 3], [0.8, 0.8, 0.8], is_guess=True)
    assert trust.value == 1
    for _ in range(5):
        trust.learn(draft, 0)
    assert trust.value < 0.4
    assert trust.weigh(draft).chances[0] == pytest.approx(0.8 * trust.value)
    assert trust.weigh(Draft([1], [0.5])).chances == [0.5]
    for _ in range(9):
        trust.learn(draft, 3)
    assert trust.value > 0.8


def test_states_of_other_threads_are_not_captured() -> None:
    base = tiny_base()
    with base.captured_states() as found:
        other = threading.Thread(target=base.head, args=(torch.ones(1, 32),))
        other.start()
        other.join()
        assert not found
        base.head(torch.zeros(1, 32))
    base.head(torch.zeros(1, 32))
    assert len(found) == 1 and not found[0].any()


def test_a_checkpoint_keeps_its_head(tmp_path: Path) -> None:
    model = tiny_model()
    model.set_writer(make_head())
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = ZModel.from_pretrained(tmp_path / "checkpoint", base=tiny_base())
    assert loaded.writer is not None and model.writer is not None
    assert torch.equal(loaded.writer.vocabulary, model.writer.vocabulary)
    for name, value in model.writer.state_dict().items():
        torch.testing.assert_close(loaded.writer.state_dict()[name], value, atol=0.01, rtol=0.01)
    assert "writer" not in " ".join(loaded.state_dict())


def test_a_damaged_head_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.set_writer(make_head())
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    whole = (folder / WRITE_FILE).read_bytes()
    (folder / WRITE_FILE).write_bytes(whole[:200])
    with pytest.raises(CheckpointError, match=r"install (it|the checkpoint) again"):
        ZModel.from_pretrained(folder, base=tiny_base())
    WriteHead(16, torch.arange(9), width=8).save(folder)  # of a base with other states
    write_digests(folder)
    with pytest.raises(CheckpointError, match="of another base"):
        ZModel.from_pretrained(folder, base=tiny_base())
    WriteHead(32, torch.tensor([7, 2_000]), width=8).save(folder)
    write_digests(folder)
    with pytest.raises(CheckpointError, match="does not have"):
        ZModel.from_pretrained(folder, base=tiny_base())


def test_an_older_checkpoint_says_what_is_missing() -> None:
    model = tiny_model()
    with pytest.raises(CheckpointError, match="ztok train --write"):
        ZGenerator(model)
    reader = ZReader(model)
    for speculate in ("head", "both"):
        with pytest.raises(CheckpointError, match="ztok train --write"):
            reader.generate(["The mill"], speculate=speculate)  # type: ignore[arg-type]
    assert reader.generate(["The mill"], speculate="lookup", max_new_tokens=2)


def test_kinds_of_drafts_are_checked() -> None:
    assert drafts_by(False) == ""
    assert drafts_by("head") == "head"
    with pytest.raises(ZtokError, match="'lookup', 'head' or 'both'"):
        drafts_by("guess")
