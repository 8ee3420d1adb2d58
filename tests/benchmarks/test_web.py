"""A few bodies of requests; `benchmarks/fuzz.py` makes thousands."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

if not find_spec("fastapi"):
    pytest.skip("fastapi is not installed", allow_module_level=True)

from breakage.web import Web

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")

RAW, VALUES = 0, 128  # the body itself, or values of its fields
COMPLETIONS, CHAT, RAG = range(3)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    made = Web(tmp_path_factory.mktemp("web"))
    yield made
    made.close()


@pytest.fixture
def statuses(web: Web, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the server answers with, in order."""
    found: list[int] = []
    real = web._post

    async def post(*arguments: Any) -> tuple[int, str, bytes]:
        answer = await real(*arguments)
        found.append(answer[0])
        return answer

    monkeypatch.setattr(web, "_post", post)
    return found


def test_seeds_are_answered(web: Web, statuses: list[int]) -> None:
    *seeds, handle, question = web.seeds()
    for seed in seeds:
        web.ask(seed)
    assert statuses == [200] * len(seeds)
    web.ask(handle)
    web.ask(question)
    assert statuses[-2:] == [400, 200]


@pytest.mark.parametrize("route", [COMPLETIONS, CHAT, RAG])
def test_any_body_has_a_status_and_a_shape(web: Web, statuses: list[int], route: int) -> None:
    odd = [
        *(b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 2900, b"{}" * 2000),
        *(b'{"model": "ztok-rag", "a": NaN}', b'{"model": ' + b"9" * 2900 + b"}"),
        *(b'"\\ud800"', b"\xff\0\xff\0\xff", b"\0\0true\0" + b"9" * 400, b'["\\udcff"]\0'),
    ]
    for body in odd:
        web.ask(bytes([RAW + route]) + body)
        web.ask(bytes([VALUES + route]) + body)
    assert len(statuses) == 2 * len(odd) and statuses.count(400) > len(odd)


def test_a_failure_is_seen(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("gone")

    monkeypatch.setattr("ztok_rag.serving.rag.find_citations", fail)
    with pytest.raises(KeyError, match="gone"):  # as it comes out after a status of 500
        web.ask(bytes([RAG]) + b'{"question": "Which lamp?"}')
