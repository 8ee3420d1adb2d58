"""`ztok compress`, `ztok decompress` and `ztok view`: a text file to a file of codes, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ztok_rag.errors import DataError, check_rate

if TYPE_CHECKING:
    from ztok_rag.codec.lossless import LosslessText
    from ztok_rag.codec.sequence import ZSequence


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
    from ztok_rag.codec.compressor import MAX_RATE, ZCompressor
    from ztok_rag.codec.lossless import LosslessText

    check_rate(rate, MAX_RATE)
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


def view(
    file: Annotated[Path, typer.Argument(help="UTF-8 text file, or a lossless file of codes.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HTML page to write.")],
    rate: Annotated[
        float | None,
        typer.Option(help="Source tokens per Z-token; default: 4, or as the lossless file is."),
    ] = None,
    reconstruct_tokens: Annotated[
        int,
        typer.Option(min=0, help="Reconstruct the windows that begin within so many first tokens."),
    ] = 1024,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Write an HTML page of a text, its Z-tokens, and what the reader reconstructs from them."""
    if output.is_dir():
        raise DataError(f"{output} is a folder; name the HTML file to write.")
    text, z = _read_text_or_codes(file, checkpoint, base)
    from ztok_rag.codec.compressor import MAX_RATE, ZCompressor
    from ztok_rag.codec.sequence import write_atomic
    from ztok_rag.view.page import first_windows, render

    if rate is not None:
        check_rate(rate, MAX_RATE)
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


def _exact_text(stored: LosslessText, checkpoint: Path | None, base: str | None) -> str:
    """The text of a lossless file. At most the tokenizer of the base LLM is loaded."""
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
    """The text of a file, and its Z-tokens if it is a lossless file."""
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
    """The text of a UTF-8 file. Unless `exact`, every line end becomes a line feed."""
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
