"""Files of training data: what is read, what is kept, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_base import passages, tiny_model, tiny_tokenizer, write_questions

from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.errors import DataError
from ztok_rag.jsonl import OddRecords
from ztok_rag.training import surprisal
from ztok_rag.training.corpus import cut_passages, find_documents
from ztok_rag.training.data import prepare_data
from ztok_rag.training.passages import DataFile, find_data, near, read_all, read_passages
from ztok_rag.training.rows import check_kinds
from ztok_rag.training.surprisal import weigh_passages


def test_a_data_set_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tokenizer = write_questions(tmp_path / "questions.jsonl"), tiny_tokenizer()
    made = prepare_data(find_data([str(path)]), tokenizer, tmp_path / "data", progress=False)
    monkeypatch.setattr("ztok_rag.training.data._build", None)
    again = prepare_data(find_data([f"{path}:0.5"]), tokenizer, tmp_path / "data", progress=False)
    assert made.folder == again.folder and (made.shares, again.shares) == ((1.0,), (0.5,))
    assert len(again.questions) == len(passages())
    for number, (text, question, answer) in enumerate(passages()):
        passage = again.passages[int(again.question_passage[number])]
        start, end = again.question_span[number]
        assert tokenizer.decode(passage) == text
        assert tokenizer.decode(again.questions[number]) == " " + question
        assert tokenizer.decode(again.answers[number]) == " " + answer
        assert tokenizer.decode(passage[start:end]).strip() == answer
    path.write_text(path.read_text().replace("mill", "tower"))
    with pytest.raises(TypeError):  # other content is built anew
        prepare_data(find_data([str(path)]), tokenizer, tmp_path / "data", progress=False)


def test_texts_are_cut_and_the_short_left_out(tmp_path: Path) -> None:
    text = " ".join(context for context, _, _ in passages(20))
    (tmp_path / "long.txt").write_text(text + "\n\nToo short.")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "one.md").write_text(text)
    files = [*find_data([str(tmp_path / "long.txt")]), *find_documents(folder)]
    data = prepare_data(files, tiny_tokenizer(), tmp_path / "data", longest=100, progress=False)
    assert len(data.questions) == 0
    lengths = np.diff(data.passages.edges)
    assert lengths.min() >= 20 and lengths.max() <= 100
    assert set(data.passage_set.tolist()) == {0}  # the other file says the same
    with pytest.raises(DataError, match="no questions"):
        check_kinds(["answer"], data)


def test_files_may_be_gzipped_and_folders(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "One."}) + "\n")
    (tmp_path / "b.txt").write_text("Two.\n\nThree.")
    assert [p.text for p in read_passages(tmp_path)] == ["One.", "Two.", "Three."]
    assert [f.path.name for f in find_data([f"{tmp_path}:2"])] == ["a.jsonl.gz", "b.txt"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("{", "line 2"),
        ('{"context": "x", "question": "y"}', "line 2.*answers"),
        ('{"context": "x", "question": "y", "answers": []}', "non-empty list"),
        ('{"text": " "}', "empty"),
        ("[]", "line 2"),
    ],
)
def test_a_malformed_record_is_named(line: str, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=cause):
        read_passages(path)


def test_files_of_other_editors_are_the_same_passages(tmp_path: Path) -> None:
    lines, text = '{"text": "One."}\n{"text": "Two."}\n', "One.\n\nTwo.\n"
    for suffix, content in ((".jsonl", lines), (".txt", text)):
        for encoding in ("utf-8-sig", "utf-16"):
            for end in ("\n", "\r\n", "\r"):
                path = tmp_path / f"a{suffix}"
                path.write_bytes(content.replace("\n", end).encode(encoding))
                assert [p.text for p in read_passages(path)] == ["One.", "Two."]


def test_pipes_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = json.dumps({"text": "A passage of words. " * 20}).encode() + b"\n"
    opened: list[str] = []

    def once(path: Path) -> bytes:
        opened.append(str(path))
        return gzip.compress(lines) if str(path).endswith("63") else lines

    monkeypatch.setattr("ztok_rag.training.passages.read_bytes", once)
    files = find_data(["-:2", "/dev/fd/63"])
    assert [(str(file.path), file.share) for file in files] == [("-", 2.0), ("/dev/fd/63", 1.0)]
    files.append(DataFile(Path("/dev/stdin"), is_corpus=True))
    read_all(files)
    for _ in range(2):
        data = prepare_data(files, tiny_tokenizer(), tmp_path / "data", progress=False)
    assert len(data.passages) == 1 and opened == ["-", "/dev/fd/63", "/dev/stdin"]


def test_odd_records_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    odd_lines = ['{"text": "\\ud835"}', '{"text": NaN}', '{"text": 1}', "[]", '{"question": "Q?"}']
    path.write_text("\n".join([*odd_lines, '{"text": "Fine."}']), encoding="utf-8")
    for is_corpus in (False, True):
        odd = OddRecords()
        content = DataFile(path, is_corpus=is_corpus).read(odd)
        assert [p.text for p in content.passages] == ["Fine."] and len(odd.found) == 5
        with pytest.raises(DataError, match=r"a\.jsonl, line 1: it has half a surrogate pair"):
            DataFile(path, is_corpus=is_corpus).read()


def test_a_data_set_that_was_not_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("A passage of words. " * 20, encoding="utf-8")

    def killed(*_: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr("ztok_rag.training.data.os.replace", killed)
    with pytest.raises(SystemExit):
        prepare_data(
            find_data([str(tmp_path / "a.txt")]),
            tiny_tokenizer(),
            tmp_path / "data",
            progress=False,
        )
    assert [path.suffix for path in (tmp_path / "data").iterdir()] in ([], [".lock"])


def test_bad_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8b nothing")
    for spec, cause in (
        (tmp_path / "nothing.jsonl", "cannot read"),
        (tmp_path / "short.txt", "nothing to train on"),
        (tmp_path / "broken.jsonl.gz", "cannot read"),
        (tmp_path / "empty", "holds no training data"),
        (f"{tmp_path / 'short.txt'}:0", "above 0"),
        (f"{tmp_path / 'short.txt'}:many", "above 0"),
    ):
        with pytest.raises(DataError, match=cause):
            files = find_data([str(spec)])
            prepare_data(files, tiny_tokenizer(), tmp_path / "data", progress=False)
    with pytest.raises(DataError, match="holds no documents"):
        find_documents(tmp_path / "empty")


def test_weighing_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny_model(), write_questions(tmp_path / "questions.jsonl")
    files = find_data([str(path)])
    data = [
        prepare_data(files, model.base.tokenizer, tmp_path / name, progress=False)
        for name in ("whole", "parts")
    ]
    whole = weigh_passages(model, data[0], batch_tokens=300, progress=False)

    original, done = surprisal._weigh_batch, []

    def killed(*arguments: object) -> None:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(0)
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(surprisal, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(surprisal, "_weigh_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        weigh_passages(model, data[1], batch_tokens=300, progress=False)
    left: list[int] = []
    monkeypatch.setattr(surprisal, "_weigh_batch", lambda *a: (left.append(0), original(*a)))
    parts = weigh_passages(model, data[1], batch_tokens=300, progress=False)
    np.testing.assert_array_equal(whole.nats, parts.nats)
    np.testing.assert_array_equal(whole.predicted, parts.predicted)
    assert 0 < len(left) <= len(passages()) / 2 - 5

    # As the compressor weighs them.
    texts = ZCompressor(model).compress_all_rates([passages()[0][0]])
    edges = data[0].passages.edges
    levels = surprisal.levels_of(whole.nats[: edges[1]].astype(float), whole.predicted[: edges[1]])
    assert (levels == texts[0].levels).mean() > 0.97  # halves are rounded


def test_pieces_end_at_sentences(tmp_path: Path) -> None:
    text = " ".join(context for context, _, _ in passages(5))
    pieces = list(cut_passages(text, tiny_tokenizer(), 60))
    assert " ".join(pieces) == text
    assert all(piece.endswith(".") for piece in pieces[:3])


def test_neighbours_are_near() -> None:
    assert near(np.arange(10), 0, 2).tolist() == [1, 2]
    assert near(np.arange(10), 5, 2).tolist() == [3, 4, 6, 7]
