"""Building an index on disk: documents come in blocks, into files beside those of the old index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import chain
from typing import Any

from llama_index.core import Document
from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ztok_rag.errors import ZtokError
from ztok_rag.index.documents import check_documents, has_words, same_id, warn_left_out
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.former import former_texts, has_documents, would_empty
from ztok_rag.index.holding import Holding
from ztok_rag.index.ingestion import Ingestion
from ztok_rag.index.large import LargeContents
from ztok_rag.index.segments import remove_segments
from ztok_rag.storage.backends import in_parts
from ztok_rag.storage.store import ZStore

_DOCUMENTS_AT_ONCE = 256
_DOCUMENTS_AT_ONCE_ON_RAY = 2048  # workers load the models for each block of them
_TEXTS_AT_ONCE = 1000  # that are pinned or unpinned by one call


class NewFiles:
    """The files of a large index that is being built, beside those of the one that it replaces.

    Attributes:
        folder: of the index.
        manifest: settings of the new one.
        is_fresh: whether the store held nothing before that may be of no use to the new one.
    """

    def __init__(
        self,
        folder: IndexFolder,
        manifest: Manifest,
        store: ZStore,
        docstore: BaseDocumentStore | None,
        vector_store: BasePydanticVectorStore | None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.is_fresh = Holding(folder, store).is_fresh()
        self._store = store
        self._theirs: dict[str, Any] = {"docstore": docstore, "vector_store": vector_store}
        self._target = folder.path
        self._is_adopted = False

    @contextmanager
    def making(self) -> Iterator[LargeContents]:
        """An empty index to be filled, and adopted before the body ends."""
        with self.folder.building() as self._target:
            contents = LargeContents.make(
                self._target / self.folder.index.name,
                self.folder,
                self.manifest,
                self._store,
                **self._theirs,
            )
            try:
                yield contents
            except BaseException:
                if not self._is_adopted:
                    self._release(contents)
                raise

    def adopt(self, contents: LargeContents) -> LargeContents:
        """Put the files into their place, and open them there."""
        contents.close_up()
        revised = self.manifest.revised()
        self.folder.adopt(self._target, revised)
        self._is_adopted = True
        remove_segments(self.folder.segments)
        return LargeContents(self.folder, revised, self._store, **self._theirs)

    def _release(self, contents: LargeContents) -> None:
        """Unpin all texts of an index that comes to nothing, but not those of the one before."""
        with suppress(ZtokError):  # else what to unpin is not known, and the next build finds it
            kept = in_parts(former_texts(self.folder, self.manifest), _TEXTS_AT_ONCE)
            first = next(kept, [])
            for texts in in_parts(contents.texts(), _TEXTS_AT_ONCE):
                contents.holding.release(texts)
            for texts in chain([first], kept):
                contents.holding.add(texts)


def build_large(
    documents: Iterable[Document], files: NewFiles, ingestion: Ingestion, *, allow_empty: bool
) -> LargeContents:
    """Build an index of documents that are not held in memory.

    Args:
        documents: read once.
        files: of the new index.
        ingestion: makes chunks of them.
        allow_empty: whether an index with documents may be replaced by one without.

    Raises:
        ZtokError: two documents have one id, metadata cannot be kept, or the index in the folder
            would be emptied.
    """
    left_out: list[Document] = []
    engine = ingestion.engine
    at_once = _DOCUMENTS_AT_ONCE if engine is None else _DOCUMENTS_AT_ONCE_ON_RAY
    with nullcontext() if engine is None else engine.connected(), files.making() as contents:
        for number, block in enumerate(in_parts(documents, at_once)):
            checked = check_documents(block)
            left_out += [document for document in checked if not has_words(document)]
            worded = [document for document in checked if has_words(document)]
            for document in worded:
                if contents.has_document(document.doc_id):
                    raise same_id(document)
            # Hashed first, in case the caller changes a document in the meantime.
            hashes = {document.doc_id: document.hash for document in worded}
            # What a killed build has made of a block is found by the next one.
            segments = files.folder.segments / str(number)
            contents.fill(ingestion.chunks(worded, segments), hashes)
        if not contents.document_count and not allow_empty and has_documents(files.folder):
            raise would_empty(files.folder.path, "build")
        warn_left_out(left_out)
        return files.adopt(contents)
