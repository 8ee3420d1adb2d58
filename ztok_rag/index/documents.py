"""Documents as an index keeps them, and which of its documents a reader gives again."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.core import Document
from llama_index.core.schema import MetadataMode

from ztok_rag.errors import ZtokError
from ztok_rag.inputs import as_list, repair_surrogates

_SOURCE, _PART = "file_path", "page_label"  # in the metadata that LlamaIndex's readers write
_NAMED = 5  # documents in a warning


@dataclass(frozen=True)
class KnownDocument:
    """A document of an index.

    Attributes:
        hash: LlamaIndex's hash of its text and metadata.
        metadata: its metadata.
    """

    hash: str | None
    metadata: Mapping[str, Any]


def check_documents(documents: Iterable[Document]) -> list[Document]:
    """Documents as they can be kept; those given stay as they are.

    Half surrogate pairs are replaced, with a warning. Values of metadata that JSON does not hold,
    such as dates and paths, become the text that LlamaIndex shows of them.

    Args:
        documents: any iterable, which is read once.

    Raises:
        ZtokError: something is no document, two have one id, or metadata cannot be written as text.
    """
    checked: list[Document] = []
    seen: set[str] = set()
    for document in as_list(documents, "documents"):
        if not isinstance(document, Document):
            raise ZtokError(
                f"an index is made of LlamaIndex Documents, and was given a "
                f"{type(document).__name__}; wrap the text: Document(text=…)."
            )
        own = _kept(document)
        if own.doc_id in seen:
            raise same_id(own)
        seen.add(own.doc_id)
        checked.append(own)
    return checked


def same_id(document: Document) -> ZtokError:
    """The error of two documents with the id of this one."""
    return ZtokError(f"two documents have the id {document.doc_id!r}; give each one its own.")


def has_words(document: Document) -> bool:
    """Whether a document has text to index."""
    return bool(document.get_content(MetadataMode.NONE).strip())


def warn_left_out(documents: Iterable[Document]) -> None:
    """Name the documents that are left out because they have no words."""
    names = [name_of(document) for document in documents]
    if not names:
        return
    shown = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    count = "1 document is" if len(names) == 1 else f"{len(names)} documents are"
    warnings.warn(f"{count} left out for want of words: {shown}.", UserWarning, stacklevel=4)


def name_of(document: Document) -> str:
    """A document by its id, and by its file where the id says nothing."""
    source = document.metadata.get(_SOURCE) or document.metadata.get("file_name")
    if source is None or str(source) in document.doc_id:
        return repr(document.doc_id)
    return f"{str(source)!r} (id {document.doc_id})"


def recognize(documents: Iterable[Document], known: Mapping[str, KnownDocument]) -> list[Document]:
    """The documents, those that an index knows under another id with the id it knows.

    LlamaIndex's readers give a document a random id each time, unless told `filename_as_id=True`.
    So a document whose id is random (UUID version 4), and not of the index, is one of the index
    with the same `file_path` in its metadata, and the same `page_label` if there is one. Of several
    it is the one with the same hash, else the next in order. Without a `file_path`, it is one with
    the same text and metadata.

    Args:
        documents: as from `check_documents`.
        known: documents of the index by their ids, in its order.
    """
    documents = list(documents)
    given = {document.doc_id for document in documents}
    free = {i: doc for i, doc in known.items() if i not in given}
    unknown = [d for d in documents if d.doc_id not in known and is_random(d.doc_id)]
    found: dict[str, str] = {}
    for key_of in (_content, _source):
        waiting: dict[Any, list[str]] = {}
        for known_id, own in free.items():
            waiting.setdefault(key_of(own), []).append(known_id)
        waiting.pop(None, None)
        for document in unknown:
            same = waiting.get(key_of(document))
            if same and document.doc_id not in found:
                found[document.doc_id] = same.pop(0)
                del free[found[document.doc_id]]
    return [
        d.model_copy(update={"id_": found[d.doc_id]}) if d.doc_id in found else d for d in documents
    ]


def _content(document: Document | KnownDocument) -> str | None:
    """The hash of text and metadata."""
    return document.hash


def _source(document: Document | KnownDocument) -> tuple[str, str] | None:
    return source_of(document.metadata)


def source_of(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """File and part of it that a document is from, where its metadata say so."""
    file = metadata.get(_SOURCE)
    return None if file is None else (str(file), str(metadata.get(_PART, "")))


def is_random(doc_id: str) -> bool:
    """Whether an id is a UUID of version 4, as readers make up."""
    try:
        return uuid.UUID(doc_id).version == 4
    except ValueError:
        return False


def _kept(document: Document) -> Document:
    """The document, or a copy where something in it cannot be kept as it is."""
    name = f"the document {name_of(document)}"
    text = document.get_content(MetadataMode.NONE)
    clean = repair_surrogates(text, name)
    doc_id = repair_surrogates(document.doc_id, f"the id of {name}")
    metadata = {
        repair_surrogates(key, f"a key of the metadata of {name}"): _json_value(value, key, name)
        for key, value in document.metadata.items()
    }
    changed: dict[str, Any] = {}
    if doc_id != document.doc_id:
        changed["id_"] = doc_id
    if metadata != document.metadata:
        changed["metadata"] = metadata
    copy = document.model_copy(update=changed) if changed or clean != text else document
    if clean != text:
        copy.set_content(clean)
    return copy


def _json_value(value: object, key: str, name: str) -> Any:
    """A value of metadata as JSON can hold it."""
    where = f"{key!r} in the metadata of {name}"

    def as_text(other: object) -> Any:
        if isinstance(other, set | frozenset):
            return sorted(map(str, other))  # the order of a set differs between processes
        if type(other).__str__ is object.__str__ and type(other).__repr__ is object.__repr__:
            raise ZtokError(
                f"{where} is a {type(other).__name__}, which has no text; give text or a number."
            )
        return str(other)

    try:
        written = json.dumps(value, default=as_text, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:  # such as keys that are no text
        raise ZtokError(f"{where} cannot be kept ({error}); give text or a number.") from error
    try:
        written.encode("utf-8")
    except UnicodeEncodeError:
        return json.loads(repair_surrogates(written, where))
    again = json.loads(written)
    # Tuples and the like come back as lists; what comes back equal stays as it was.
    return value if again == value else again
