"""What a refresh of an index adds, replaces and removes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llama_index.core import Document

from ztok_rag.index.documents import KnownDocument, has_words, recognize


@dataclass(frozen=True)
class RefreshResult:
    """What `ZTokenIndex.refresh_ref_docs` did, as ids of documents.

    Attributes:
        added: documents that were not in the index.
        changed: documents whose text or metadata had changed, and that were replaced.
        unchanged: documents that were in the index already.
        removed: documents of the index that were deleted: those that were not given, where that was
            asked for, and those that have no words any more.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refresh:
    """The changes of a refresh.

    Attributes:
        add: documents to add.
        remove: ids of documents to remove first.
        left_out: documents without words that are not of the index.
        result: what the caller is told.
    """

    add: Sequence[Document]
    remove: Sequence[str]
    left_out: Sequence[Document]
    result: RefreshResult

    def empties(self, count: int) -> bool:
        """Whether none of the `count` documents of the index stays, and none comes."""
        return not self.result.added and len(self.result.removed) == count


def plan_refresh(
    documents: Iterable[Document], known: Mapping[str, KnownDocument], others: Iterable[str] = ()
) -> Refresh:
    """Compare documents with those of an index.

    Args:
        documents: as from `check_documents`.
        known: documents of the index that the given ones may be, by their ids.
        others: ids of documents of the index that go if they are not given.
    """
    given = recognize(documents, known)
    worded = [doc for doc in given if has_words(doc)]
    blank = [doc for doc in given if not has_words(doc)]
    new = [doc for doc in worded if doc.doc_id not in known]
    old = [doc for doc in worded if doc.doc_id in known]
    changed = [doc for doc in old if known[doc.doc_id].hash != doc.hash]
    unchanged = [doc for doc in old if known[doc.doc_id].hash == doc.hash]
    removed = {doc.doc_id for doc in blank if doc.doc_id in known}
    removed |= set(others) - {doc.doc_id for doc in given}
    result = RefreshResult(
        added=_ids(new),
        changed=_ids(changed),
        unchanged=_ids(unchanged),
        removed=tuple(sorted(removed)),
    )
    return Refresh(
        add=[*new, *changed],
        remove=[*result.changed, *result.removed],
        left_out=[doc for doc in blank if doc.doc_id not in known],
        result=result,
    )


def _ids(documents: Iterable[Document]) -> tuple[str, ...]:
    return tuple(doc.doc_id for doc in documents)
