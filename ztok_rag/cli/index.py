"""`ztok index`, `ztok ask` and `ztok stats`: an index in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ztok_rag.cli.arguments import load_compressor
from ztok_rag.cli.console import say, shows_bars
from ztok_rag.cli.folder import read_folder
from ztok_rag.cli.output import check_folder
from ztok_rag.cli.place import FOLDER_HELP, STORE_HELP, Place
from ztok_rag.errors import DataError
from ztok_rag.files import repair, show


def index_folder(
    folder: Annotated[Path, typer.Argument(help="Folder of text files, read with its subfolders.")],
    store: Annotated[
        str,
        typer.Option(
            help="Folder of the index; one already there is brought up to date. Or the URL of a "
            "store in Redis, for the Z-tokens."
        ),
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
    large: Annotated[
        bool,
        typer.Option(
            "--large",
            help="Keep text and vectors of the index on disk and not in memory; needs "
            "ztok-rag[lance]. It stays so.",
        ),
    ] = False,
    index_folder: Annotated[Path | None, typer.Option("--folder", help=FOLDER_HELP)] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Compress and embed on Ray; needs `ztok-rag[ray]`.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Replicas of the models, with --ray; default: what fits.")
    ] = None,
) -> None:
    """Index a folder's text files as Z-tokens; the second time, only what has changed."""
    if workers is not None and not ray:
        raise DataError("--workers is of --ray; give both.")
    place = Place.of(store, index_folder)
    found = read_folder(folder, place.folder)
    if not found.texts:
        report = f" ({found.report().rstrip('.')})" if found.left_out else ""
        raise DataError(f"{show(folder)} has no text files{report}; name a folder of UTF-8 text.")
    if found.left_out:
        say(found.report())
    check_folder(place.folder)
    shared = place.open_store()
    from llama_index.core import Document

    from ztok_rag.index.distributed import RayEngine
    from ztok_rag.index.folder import IndexFolder
    from ztok_rag.index.index import ZTokenIndex
    from ztok_rag.index.refresh import RefreshResult

    documents = [
        # The LLM and the embedding model read the text without the name of the file.
        Document(
            text=text,
            id_=name,
            metadata={"file": name},
            excluded_llm_metadata_keys=["file"],
            excluded_embed_metadata_keys=["file"],
        )
        for name, text in found.texts.items()
    ]
    compressor = None if checkpoint is None else load_compressor(checkpoint)
    bars = shows_bars()
    engine = RayEngine(workers=workers) if ray else None
    if IndexFolder(place.folder).exists() and not rebuild:
        index = ZTokenIndex.load(place.folder, compressor=compressor, store=shared)
        if chunk_size not in (None, index.chunk_size):
            raise DataError(
                f"the index {place.folder} has chunks of {index.chunk_size} tokens; leave "
                "--chunk-size out, or index into a new folder."
            )
        if large and not index.is_large:
            raise DataError(
                f"the index {place.folder} is held in memory; add --rebuild to keep it on disk."
            )
        result = index.refresh_ref_docs(
            documents, remove_others=True, show_progress=bars, engine=engine
        )
        if rate not in (None, index.rate) or index.outdated:
            index.recompress(rate=rate, show_progress=bars)
    else:
        settings: dict[str, Any] = {"rate": 4.0, "chunk_size": 256}
        settings |= IndexFolder(place.folder).settings()
        if large:
            settings |= {"vector_store": "lance", "docstore": "sqlite"}
        given = {"rate": rate, "chunk_size": chunk_size}
        settings |= {name: value for name, value in given.items() if value is not None}
        index = ZTokenIndex.build(
            documents,
            place.folder,
            **settings,
            compressor=compressor,
            store=shared,
            show_progress=bars,
            engine=engine,
        )
        result = RefreshResult(added=index.document_ids)
    if index.is_large and (result.added or result.changed or result.removed):
        index.optimize()
    stats = index.stats()
    typer.echo(
        f"{stats.documents} files: {len(result.added)} added, {len(result.changed)} changed, "
        f"{len(result.unchanged)} unchanged, {len(result.removed)} removed, "
        f"{len(found.left_out)} skipped; "
        f"{stats.chunks} chunks, {stats.source_tokens} tokens -> {stats.z_tokens} Z-tokens "
        f"(rate {stats.rate:.2f}), {stats.bytes_per_token:.2f} bytes per token"
    )


def ask(
    question: Annotated[str, typer.Argument(help="Answered from the index.")],
    store: Annotated[str, typer.Option(help=STORE_HELP)],
    top_k: Annotated[int, typer.Option(help="Chunks the answer is read from.")] = 3,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    folder: Annotated[Path | None, typer.Option(help=FOLDER_HELP)] = None,
) -> None:
    """Answer a question from the Z-tokens of an index, and name the sources."""
    from ztok_rag.index.folder import IndexFolder
    from ztok_rag.index.index import ZTokenIndex

    question = repair(question)
    if not question.strip():
        raise DataError("the question has no words; ask one.")
    place = Place.of(store, folder)
    IndexFolder(place.folder).read()  # before any model is loaded
    shared = place.open_store()
    compressor = None if checkpoint is None else load_compressor(checkpoint)
    index = ZTokenIndex.load(place.folder, compressor=compressor, store=shared)
    response = index.query(question, similarity_top_k=top_k)
    typer.echo(str(response))
    for item in response.source_nodes:
        begins = " ".join(item.node.get_content().split())
        score = "" if item.score is None else f"{item.score:.3f}"
        typer.echo(f"{score:>7}  {item.node.ref_doc_id}: {begins[:60]}")


def stats(
    store: Annotated[str, typer.Option(help=STORE_HELP)],
    folder: Annotated[Path | None, typer.Option(help=FOLDER_HELP)] = None,
) -> None:
    """Show what an index holds and how small it is."""
    from ztok_rag.index.index import ZTokenIndex

    place = Place.of(store, folder)
    index = ZTokenIndex.load(place.folder, store=place.open_store())
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
