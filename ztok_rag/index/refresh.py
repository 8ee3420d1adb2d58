"""What a refresh of an index adds, replaces and removes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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

    def empties(self, known: Collection[str]) -> bool:
        """Whether none of the documents `known` stays, and none comes."""
        return not self.result.added and set(self.result.removed) == set(known)


def plan_refresh(
    documents: Iterable[Document], known: Mapping[str, KnownDocument], *, remove_others: bool
) -> Refresh:
    """Compare documents with those of an index.

    Args:
        documents: as from `check_documents`.
        known: documents of the index by their ids.
        remove_others: whether those that are not given go.
    """
    given = recognize(documents, known)
    worded = [doc for doc in given if has_words(doc)]
    blank = [doc for doc in given if not has_words(doc)]
    new = [doc for doc in worded if doc.doc_id not in known]
    old = [doc for doc in worded if doc.doc_id in known]
    changed = [doc for doc in old if known[doc.doc_id].hash != doc.hash]
    unchanged = [doc for doc in old if known[doc.doc_id].hash == doc.hash]
    removed = {doc.doc_id for doc in blank if doc.doc_id in known}
    if remove_others:
        removed |= known.keys() - {doc.doc_id for doc in given}
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
