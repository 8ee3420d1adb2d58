"""`ztok index`, `ztok ask` and `ztok stats`: an index in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztok_rag.errors import DataError

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


def index_folder(
    folder: Annotated[Path, typer.Argument(help="Folder of text files, read with its subfolders.")],
    store: Annotated[
        Path, typer.Option(help="Folder of the index; one already there is brought up to date.")
    ],
    rate: Annotated[
        float | None, typer.Option(help="Source tokens per Z-token; default: 4, or as it is.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Longest chunk, in tokens; default: 256, or as it is.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Compress and embed all again, as after a new version; the index that is there "
            "is kept until the new one is whole.",
        ),
    ] = False,
) -> None:
    """Index a folder's text files as Z-tokens; the second time, only what has changed."""
    texts, skipped = _read_folder(folder, store)
    if not texts:
        raise DataError(f"{folder} has no text files; name a folder of UTF-8 text.")
    import sys

    from llama_index.core import Document

    from ztok_rag.index.folder import IndexFolder
    from ztok_rag.index.index import RefreshResult, ZTokenIndex

    documents = [
        # The LLM and the embedding model read the text without the name of the file.
        Document(
            text=text,
            id_=name,
            metadata={"file": name},
            excluded_llm_metadata_keys=["file"],
            excluded_embed_metadata_keys=["file"],
        )
        for name, text in texts.items()
    ]
    compressor = _compressor(checkpoint)
    bars = sys.stderr.isatty()
    if IndexFolder(store).exists() and not rebuild:
        index = ZTokenIndex.load(store, compressor=compressor)
        if chunk_size not in (None, index.chunk_size):
            raise DataError(
                f"the index {store} has chunks of {index.chunk_size} tokens; leave --chunk-size "
                "out, or index into a new folder."
            )
        result = index.refresh_ref_docs(documents, remove_others=True, show_progress=bars)
        if rate not in (None, index.rate) or index.outdated:
            index.recompress(rate=rate, show_progress=bars)
    else:
        settings = {"rate": 4.0, "chunk_size": 256, **IndexFolder(store).settings()}
        given = {"rate": rate, "chunk_size": chunk_size}
        settings |= {name: value for name, value in given.items() if value is not None}
        index = ZTokenIndex.build(
            documents,
            store,
            **settings,
            compressor=compressor,
            show_progress=bars,
        )
        result = RefreshResult(added=index.document_ids)
    stats = index.stats()
    typer.echo(
        f"{stats.documents} files: {len(result.added)} added, {len(result.changed)} changed, "
        f"{len(result.unchanged)} unchanged, {len(result.removed)} removed, {skipped} skipped; "
        f"{stats.chunks} chunks, {stats.source_tokens} tokens -> {stats.z_tokens} Z-tokens "
        f"(rate {stats.rate:.2f}), {stats.bytes_per_token:.2f} bytes per token"
    )


def ask(
    question: Annotated[str, typer.Argument(help="Answered from the index.")],
    store: Annotated[Path, typer.Option(help="Folder that `ztok index` wrote.")],
    top_k: Annotated[int, typer.Option(help="Chunks the answer is read from.")] = 3,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
) -> None:
    """Answer a question from the Z-tokens of an index, and name the sources."""
    from ztok_rag.index.index import ZTokenIndex

    index = ZTokenIndex.load(store, compressor=_compressor(checkpoint))
    response = index.query(question, similarity_top_k=top_k)
    typer.echo(str(response))
    for item in response.source_nodes:
        begins = " ".join(item.node.get_content().split())
        score = "" if item.score is None else f"{item.score:.3f}"
        typer.echo(f"{score:>7}  {item.node.ref_doc_id}: {begins[:60]}")


def stats(
    store: Annotated[Path, typer.Option(help="Folder that `ztok index` wrote.")],
) -> None:
    """Show what an index holds and how small it is."""
    from ztok_rag.index.index import ZTokenIndex

    index = ZTokenIndex.load(store)
    held = index.stats()
    rows = {
        "documents": str(held.documents),
        "chunks": f"{held.chunks}, of at most {index.chunk_size} tokens",
        "source tokens": str(held.source_tokens),
        "Z-tokens": f"{held.z_tokens} (rate {held.rate:.2f})",
        "stored": f"{held.stored_bytes} bytes, {held.bytes_per_token:.2f} per source token",
        "text": f"{held.text_bytes} bytes",
    }
    if held.pending:
        rows["not compressed"] = f"{held.pending} chunks; `ztok index` compresses them"
    for name, value in rows.items():
        typer.echo(f"{name:18} {value}")


def _compressor(checkpoint: Path | None) -> ZCompressor | None:
    """The compressor of a checkpoint; `None` for the default one, which is loaded when needed."""
    if checkpoint is None:
        return None
    from ztok_rag.codec.compressor import ZCompressor

    return ZCompressor.from_pretrained(checkpoint)


def _read_folder(folder: Path, excluded: Path) -> tuple[dict[str, str], int]:
    """The text files of a folder and its subfolders, without hidden ones.

    Args:
        folder: the folder.
        excluded: a folder whose files are left out; it may be inside the other.

    Returns:
        Texts by path relative to `folder`, and the number of files that were skipped because they
        are binary or have no words.

    Raises:
        DataError: it is not a folder, or a file cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; name a folder of text files.")
    texts: dict[str, str] = {}
    skipped = 0
    outside = excluded.expanduser().resolve()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not file.is_file() or file.resolve().is_relative_to(outside):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}.") from error
        except UnicodeDecodeError:
            text = ""
        if not text.strip() or "\0" in text:
            skipped += 1
        else:
            texts[name.as_posix()] = text
    return texts, skipped
