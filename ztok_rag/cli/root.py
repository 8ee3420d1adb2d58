"""The `ztok` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztok_rag.errors import DataError, ZtokError

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.lossless import LosslessText
    from ztok_rag.codec.sequence import ZSequence

app = typer.Typer(
    name="ztok",
    help="Compress retrieved context into Z-tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    """Compress retrieved context into Z-tokens."""


@app.command()
def train(
    data: Annotated[
        list[str] | None,
        typer.Option(help="JSON Lines, text file or folder; PATH:0.2 takes a fifth. Repeatable."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of documents, to adapt a checkpoint to. Repeatable."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder of the run; an interrupted one resumes.")
    ] = Path("ztok-run"),
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from; with only a corpus: the one shipped."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps in all; default: 1000, or 300 on a corpus.")
    ] = None,
    text_steps: Annotated[
        int | None,
        typer.Option(help="First steps, of the raw-text reader; default: 200, or 0 with --init."),
    ] = None,
    ramp_steps: Annotated[
        int | None,
        typer.Option(help="Steps over which the rate rises; default: 150, or 0 with --init."),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Rates drawn afterwards.")
    ] = "1.5,2,3,4,4,4,4,6,8,8,16,32",
    batch_tokens: Annotated[int, typer.Option(help="Tokens per batch, about.")] = 1400,
    max_source_tokens: Annotated[int, typer.Option(help="Longest passage trained on.")] = 512,
    relevance_steps: Annotated[
        int, typer.Option(help="Steps of the relevance model, after all others.")
    ] = 1600,
    reader_steps: Annotated[
        int, typer.Option(help="Steps of the reader alone, on what questions choose; the last.")
    ] = 400,
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    layers: Annotated[int | None, typer.Option(help="Layers the compressor runs.")] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 32,
    anchors: Annotated[int, typer.Option(help="Anchor codes per Z-token.")] = 1,
    residual_depth: Annotated[int, typer.Option(help="Residual codes per Z-token.")] = 2,
    distillation: Annotated[
        float | None,
        typer.Option(
            help="Share of the loss that is distilled from the raw-text reader; default: 0, or "
            "0.5 on a corpus."
        ),
    ] = None,
    question_weight: Annotated[float, typer.Option(help="Loss weight of question words.")] = 0.0,
    reconstruction_weight: Annotated[float, typer.Option(help="Loss weight of repeating.")] = 0.3,
    reconstruct: Annotated[float, typer.Option(help="Share of passages repeated.")] = 0.3,
    cloze: Annotated[
        float, typer.Option(help="Share of passages asked for words left out of a sentence.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of data order, rates and weights.")] = 0,
    save_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Keep the checkpoint of every so many steps.")
    ] = None,
) -> None:
    """Train a compressor and its reader, or adapt the shipped ones to documents."""
    if not data and not corpus:
        raise DataError("there is nothing to train on; give --data or --corpus.")
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT
    from ztok_rag.codec.prompts import training_templates
    from ztok_rag.training.data import BatchSettings
    from ztok_rag.training.objective import TrainSettings
    from ztok_rag.training.relevance import RelevanceSettings
    from ztok_rag.training.run import run_training

    if not data and init is None and base is None:
        init = DEFAULT_CHECKPOINT
    fresh = init is None
    if steps is None:
        steps = 1000 if data else 300
    if distillation is None:
        distillation = 0.0 if data else 0.5
    model_settings = {"rank": rank, "anchors": anchors, "residual_depth": residual_depth}
    if layers is not None:
        model_settings["compressor_layers"] = layers
    folder = run_training(
        data or [],
        output,
        corpus=corpus or [],
        base=base,
        init=init,
        device=device,
        model_settings=model_settings,
        batch_settings=BatchSettings(
            batch_tokens=batch_tokens,
            max_source_tokens=max_source_tokens,
            reconstruct=reconstruct,
            cloze=cloze,
            templates=training_templates(),
        ),
        settings=TrainSettings(
            steps=steps,
            text_steps=text_steps if text_steps is not None else 200 * fresh,
            ramp_steps=ramp_steps if ramp_steps is not None else 150 * fresh,
            rates=_numbers(rates),
            accumulate=accumulate,
            lr=lr,
            distillation=distillation,
            question_weight=question_weight,
            reconstruction_weight=reconstruction_weight,
            seed=seed,
            save_minutes=save_minutes,
        ),
        relevance=RelevanceSettings(steps=relevance_steps, seed=seed),
        reader_steps=reader_steps,
        snapshot_every=snapshot_every,
    )
    typer.echo(f"checkpoint: {folder}")


@app.command()
def average(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints trained from the same start, two at least.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to write.")],
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
) -> None:
    """Average the weights of checkpoints from runs that went on side by side."""
    from ztok_rag.training.average import average_checkpoints

    if output.exists():
        raise DataError(f"{output} is there already; name a new folder.")
    average_checkpoints(checkpoints, base=base).save_pretrained(output)
    typer.echo(f"checkpoint: {output}")


@app.command()
def compress(
    file: Annotated[Path, typer.Argument(help="UTF-8 text file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File of codes to write.")],
    rate: Annotated[float, typer.Option(help="Source tokens per Z-token.")] = 4.0,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Keep what gives the exact text back, too.")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Compress a text file into a file of Z-token codes."""
    text = _read_text(file, exact=lossless)
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.lossless import LosslessText

    compressor = ZCompressor.from_pretrained(checkpoint, base=base, device=device)
    (z,) = compressor.compress([text], rate)
    stored = len(z.to_bytes())
    line = (
        f"{z.source_tokens} tokens -> {len(z)} Z-tokens (rate {z.rate:.2f}), {stored} bytes, "
        f"{stored / z.source_tokens:.2f} per token"
    )
    if lossless:
        import gzip

        both = LosslessText.pack(text, z, compressor.tokenizer)
        both.save(output)
        line += (
            f"; {len(both.packed)} more for the exact text, {len(both.to_bytes())} in all; "
            f"the text takes {len(text.encode())}, {len(gzip.compress(text.encode(), 9))} by gzip"
        )
    else:
        z.save(output)
    typer.echo(line)


@app.command()
def decompress(
    file: Annotated[Path, typer.Argument(help="File that `ztok compress` wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Text file to write; default: stdout.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Write the text of a file of codes: exact if lossless, else as the reader reconstructs it."""
    from ztok_rag.codec.lossless import LosslessText, parse
    from ztok_rag.codec.sequence import read_sequence_file, write_atomic

    stored = read_sequence_file(file, parse)
    if isinstance(stored, LosslessText):
        text = _exact_text(stored, checkpoint, base)
    else:
        from ztok_rag.codec.compressor import ZCompressor

        compressor = ZCompressor.from_pretrained(checkpoint, base=base, device=device)
        (text,) = compressor.decompress([stored])
    if output is not None:
        write_atomic(output, text.encode())
    elif isinstance(stored, LosslessText):
        typer.echo(text.encode(), nl=False)
    else:
        typer.echo(text)


@app.command()
def view(
    file: Annotated[Path, typer.Argument(help="UTF-8 text file, or a lossless file of codes.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML page to write.")],
    rate: Annotated[
        float | None,
        typer.Option(help="Source tokens per Z-token; default: 4, or as the lossless file is."),
    ] = None,
    reconstruct_tokens: Annotated[
        int,
        typer.Option(min=0, help="Reconstruct the windows that begin in so many first tokens."),
    ] = 1024,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Write an HTML page of a text, its Z-tokens, and what the reader reconstructs from them."""
    if output.is_dir():
        raise DataError(f"{output} is a folder; name the HTML file to write.")
    text, z = _read_text_or_codes(file, checkpoint, base)
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.sequence import write_atomic
    from ztok_rag.view.page import first_windows, render

    compressor = ZCompressor.from_pretrained(checkpoint, base=base, device=device)
    if z is None or rate is not None:
        (z,) = compressor.compress([text], 4.0 if rate is None else rate)
    windows = first_windows(z, reconstruct_tokens)
    page = render(
        text,
        z,
        compressor.decompress(windows),
        compressor.tokenizer,
        title=file.name,
        anchors=compressor.model.config.anchors,
    )
    write_atomic(output, page.encode())
    typer.echo(
        f"{z.source_tokens} tokens -> {len(z)} Z-tokens (rate {z.rate:.2f}), {len(windows)} of "
        f"{len(z.windows)} windows reconstructed\nWritten: {output}"
    )


@app.command("eval")
def evaluate(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA.jsonl",
            help="JSON Lines of {context, question, answers} or of {text}.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder of the results; an interrupted evaluation resumes.")
    ],
    rates: Annotated[str, typer.Option(help="Source tokens per Z-token.")] = "4,8,16",
    limit: Annotated[
        int | None, typer.Option(help="Records per file, drawn by --seed; default: all.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Of qa,reconstruction; default: all that the records allow."),
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Of none,text,text-reader,ztok,ztok-focus: who reads what.")
    ] = "none,text-reader,ztok,ztok-focus",
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts or texts in one batch.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 32,
    max_text_tokens: Annotated[
        int, typer.Option(help="Longer texts are cut to this before they are reconstructed.")
    ] = 256,
) -> None:
    """Score a checkpoint: answers from Z-tokens, and texts reconstructed from them."""
    from ztok_rag.evaluation import format_table
    from ztok_rag.evaluation.checkpoint import EvalSettings, evaluate_checkpoint, read_datasets

    datasets = read_datasets(data, None if tasks is None else _names(tasks))
    settings = EvalSettings(
        rates=_numbers(rates),
        arms=_names(arms),
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_text_tokens=max_text_tokens,
    )
    from ztok_rag.codec.compressor import ZCompressor

    compressor = ZCompressor.from_pretrained(checkpoint, base=base, device=device)
    name = str(checkpoint or "default")
    try:
        rows, note = evaluate_checkpoint(compressor, datasets, output, settings, checkpoint=name)
    except KeyboardInterrupt:
        typer.echo("ztok: stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{format_table(rows)}\n{note}\nWritten: {output}/results.json, predictions.jsonl")


@app.command("index")
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
        # The name is for people: the LLM and the embedding model read the text alone.
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
    if IndexFolder(store).exists():
        index = ZTokenIndex.load(store, compressor=compressor)
        if chunk_size not in (None, index.chunk_size):
            raise DataError(
                f"the index {store} has chunks of {index.chunk_size} tokens; leave --chunk-size "
                "out, or index into a new folder."
            )
        result = index.refresh(documents, remove_others=True, show_progress=bars)
        if rate not in (None, index.rate) or index.outdated:
            index.recompress(rate=rate, show_progress=bars)
    else:
        index = ZTokenIndex.build(
            documents,
            store,
            rate=4.0 if rate is None else rate,
            chunk_size=256 if chunk_size is None else chunk_size,
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


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="Answered from the index.")],
    store: Annotated[Path, typer.Option(help="Folder that `ztok index` wrote.")],
    top_k: Annotated[int, typer.Option(help="Chunks the answer is read from.")] = 3,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
) -> None:
    """Answer a question from the Z-tokens of an index, and name the sources."""
    from ztok_rag.index.index import ZTokenIndex

    index = ZTokenIndex.load(store, compressor=_compressor(checkpoint))
    response = index.query(question, top_k)
    typer.echo(str(response))
    for item in response.source_nodes:
        begins = " ".join(item.node.get_content().split())
        score = "" if item.score is None else f"{item.score:.3f}"
        typer.echo(f"{score:>7}  {item.node.ref_doc_id}: {begins[:60]}")


@app.command()
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


@app.command()
def info(
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
) -> None:
    """Show versions, device, checkpoint and cache folder."""
    import platform
    from importlib.metadata import version

    import torch

    from ztok_rag.codec.base import cache_dir, default_dtype, dtype_name
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = checkpoint or DEFAULT_CHECKPOINT
    config = ZConfig.load(folder)
    packages = ("ztok-rag", "torch", "transformers", "peft", "llama-index-core")
    rows = {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": f"{device} ({dtype_name(default_dtype(device))})",
        "cache": str(cache_dir()),
        "checkpoint": str(folder),
        "base LLM": f"{config.base} ({config.base_fingerprint})",
        "compressor": f"first {config.compressor_layers} layers, LoRA rank {config.rank}",
        "Z-token": f"{config.anchors} anchor codes, {config.residual_depth} residual codes",
        "adapters": ", ".join(config.adapters),
    }
    for name, value in rows.items():
        typer.echo(f"{name:18} {value}")


def _names(text: str) -> tuple[str, ...]:
    """The parts of a list separated by commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, _names(text)))
    except ValueError as error:
        raise DataError(f"expected numbers separated by commas, got {text!r}.") from error


def _compressor(checkpoint: Path | None) -> ZCompressor | None:
    """The compressor of a checkpoint; `None` is for the default one, loaded when needed."""
    if checkpoint is None:
        return None
    from ztok_rag.codec.compressor import ZCompressor

    return ZCompressor.from_pretrained(checkpoint)


def _read_folder(folder: Path, excluded: Path) -> tuple[dict[str, str], int]:
    """The text files of a folder and its subfolders, hidden ones left out.

    Args:
        folder: where to look.
        excluded: a folder that may lie inside and is passed over.

    Returns:
        Texts by path relative to `folder`, and the number of files that were skipped: binary
        ones and those without words.

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


def _exact_text(stored: LosslessText, checkpoint: Path | None, base: str | None) -> str:
    """The text of a lossless file; only the base's tokenizer is loaded, and only where needed."""
    if not stored.needs_tokenizer:
        return stored.text()
    from ztok_rag.codec.base import load_tokenizer
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT

    base = base or ZConfig.load(checkpoint or DEFAULT_CHECKPOINT).base
    return stored.text(load_tokenizer(base))


def _read_text_or_codes(
    file: Path, checkpoint: Path | None, base: str | None
) -> tuple[str, ZSequence | None]:
    """The text of a file, and its Z-tokens where it is a lossless file."""
    from ztok_rag.codec.lossless import LosslessText
    from ztok_rag.codec.sequence import LOSSLESS_MAGIC, is_lossless

    try:
        with file.open("rb") as stream:
            lossless = is_lossless(stream.read(len(LOSSLESS_MAGIC)))
    except OSError:
        lossless = False
    if not lossless:
        return _read_text(file), None
    stored = LosslessText.load(file)
    return _exact_text(stored, checkpoint, base), stored.z


def _read_text(file: Path, *, exact: bool = False) -> str:
    """A UTF-8 file's text; unless `exact`, every line end becomes a line feed."""
    try:
        with file.open(encoding="utf-8", newline="" if exact else None) as stream:
            text = stream.read()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text; convert it first.") from error
    if not text.strip():
        raise DataError(f"{file} has no words to compress.")
    return text


def main() -> None:
    """Run the command; errors of ours are one line on stderr and exit status 1."""
    try:
        app()
    except ZtokError as error:
        typer.echo(f"ztok: {error}", err=True)
        raise SystemExit(1) from None
