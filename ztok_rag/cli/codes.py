"""`ztok compress`, `ztok decompress` and `ztok view`: a text file to a file of codes, and back."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztok_rag.cli.arguments import load_compressor
from ztok_rag.cli.console import say
from ztok_rag.cli.output import (
    check_file,
    is_standard_output,
    write_file,
    write_standard_output,
)
from ztok_rag.errors import DataError, SequenceError, ZtokError, check_rate
from ztok_rag.files import STANDARD_INPUT, decode, marked_encoding, read_bytes, show

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.sequence import ZSequence
    from ztok_rag.codec.token_code import TokenCode

_CODES = re.compile(rb"Z[TLX]\d\n")  # begins files of codes, of this version and of others


def compress(
    file: Annotated[Path, typer.Argument(help="UTF-8 text file; - is standard input.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File of codes to write; - is standard output.")
    ],
    rate: Annotated[float, typer.Option(help="Source tokens per Z-token.")] = 4.0,
    lossless: Annotated[
        bool,
        typer.Option(
            "--lossless",
            help="Code the exact text with the base LLM, in fewer bytes but slowly. Fail where it "
            "would not come back.",
        ),
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Compress a text file into a file of Z-token codes."""
    text = _exact_text(read_bytes(file), file)
    check_file(output)
    from ztok_rag.codec.compressor import MAX_RATE
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT

    check_rate(rate, MAX_RATE)
    slots = ZConfig.load(checkpoint or DEFAULT_CHECKPOINT).slots
    if lossless and rate > slots:
        raise ZtokError(
            f"at rate {rate:g} tokens are left out, so the exact text does not come back; "
            f"leave --lossless out, or give a --rate of at most {slots}."
        )
    compressor = load_compressor(checkpoint, base, device)
    (z,) = compressor.compress([text], rate)
    if lossless and _join(z, compressor.tokenizer) != text:
        raise ZtokError(
            f"the tokenizer of {compressor.model.base.name} does not give the exact text back; "
            "leave --lossless out, or use another --base."
        )
    data = _coded_by_llm(text, z, compressor, rate) if lossless else z.to_bytes()
    write_file(output, data)
    typer.echo(
        f"{z.source_tokens} tokens -> {len(z)} Z-tokens (rate {z.rate:.2f}), {len(data)} bytes, "
        f"{len(data) / z.source_tokens:.2f} per token",
        err=is_standard_output(output),
    )


def decompress(
    file: Annotated[
        Path, typer.Argument(help="File that `ztok compress` wrote; - is standard input.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Text file to write; default: stdout.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Write the text of a file of codes: exact up to rate 16, above with what the base LLM adds."""
    data = read_bytes(file)
    if output is not None:
        check_file(output)
    from ztok_rag.codec.llm_code import MAGIC
    from ztok_rag.codec.sequence import text_digest

    z = None if data.startswith(MAGIC) else _to_codes(data, file, checkpoint)
    if z is None:
        text, _ = _lossless_text(data, file, checkpoint, base)
    else:
        text = _text_of(z, checkpoint, base, device)
    if output is not None:
        write_file(output, text.encode())
    else:
        write_standard_output(text.encode())
    if z is None or not z.digest or z.digest == text_digest(text):
        return
    if z.holds_all:
        raise SequenceError(
            f"the text of {show(file)} did not come back exactly: the tokenizer changes such text, "
            "or is another than it was; give the --base that it was compressed with."
        )
    say(
        f"the text of {show(file)} did not come back exactly: at rate {z.rate:.1f} tokens were "
        "left out, and the base LLM wrote others in their place."
    )


def view(
    file: Annotated[
        Path, typer.Argument(help="Text file, or a file of codes; - is standard input.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="HTML page to write; - is standard output.")
    ],
    rate: Annotated[
        float | None,
        typer.Option(help="Source tokens per Z-token; default: 4, or as the file of codes is."),
    ] = None,
    reconstruct_tokens: Annotated[
        int,
        typer.Option(min=0, help="Repeat the windows that begin within so many first tokens."),
    ] = 1024,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Write an HTML page of a text, its Z-tokens, and what the reader repeats from them."""
    check_file(output)
    text, z, own_rate = _read_text_or_codes(file, checkpoint, base)
    from ztok_rag.codec.compressor import MAX_RATE
    from ztok_rag.view.page import cut_windows, first_windows, render

    if rate is not None:
        check_rate(rate, MAX_RATE)
    compressor = load_compressor(checkpoint, base, device)
    if z is None or rate is not None:
        (z,) = compressor.compress([text], own_rate if rate is None else rate)
    windows = first_windows(z, reconstruct_tokens)
    title = "standard input" if str(file) == STANDARD_INPUT else show(file.name)
    page = render(text, z, compressor.reader.repeat(windows), compressor.tokenizer, title=title)
    write_file(output, page.encode())
    typer.echo(
        f"{z.source_tokens} tokens -> {len(z)} Z-tokens (rate {z.rate:.2f}), {len(windows)} of "
        f"{len(cut_windows(z))} windows repeated\nWritten: {show(output)}",
        err=is_standard_output(output),
    )


def _coded_by_llm(text: str, z: ZSequence, compressor: ZCompressor, rate: float) -> bytes:
    """A file of a text in the code of the base LLM; of its Z-tokens, where that does not decode."""
    from ztok_rag.codec.llm_code import LosslessText, coding_base

    coded = LosslessText.encode(text, z.ids, coding_base(compressor.model.base), rate)
    if coded is not None:
        return coded.to_bytes()
    typer.echo(
        "ztok: this machine does not decode what it codes with the base LLM; the file holds the "
        "Z-tokens, and the text comes back exactly all the same.",
        err=True,
    )
    return z.to_bytes()


def _lossless_text(
    data: bytes, file: Path, checkpoint: Path | None, base: str | None
) -> tuple[str, float]:
    """The text in a file of `ztok compress --lossless`, and the rate that was asked for.

    Raises:
        SequenceError: it does not come back.
    """
    import torch

    from ztok_rag.codec.base import BaseLM
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.llm_code import LosslessText
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT

    name = base or ZConfig.load(checkpoint or DEFAULT_CHECKPOINT).base
    try:
        coded = LosslessText.from_bytes(data)
        text = coded.decode(BaseLM.load(name, device="cpu", dtype=torch.float32))
    except SequenceError as error:
        raise SequenceError(f"{show(file)}: {error}") from error
    return text, coded.rate


def _text_of(z: ZSequence, checkpoint: Path | None, base: str | None, device: str | None) -> str:
    """The text of a sequence. Where every token is held, only the tokenizer is loaded."""
    if z.holds_all:
        return _join(z, _tokenizer(checkpoint, base))
    compressor = load_compressor(checkpoint, base, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the command says it in a line of its own
        return compressor.decompress([z])[0]


def _join(z: ZSequence, tokenizer: Any) -> str:
    """The tokens that a sequence holds, as text."""
    from ztok_rag.codec.base import decode_exactly

    return decode_exactly(tokenizer, z.ids)


def _tokenizer(checkpoint: Path | None, base: str | None) -> Any:
    from ztok_rag.codec.base import load_tokenizer
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT

    return load_tokenizer(base or ZConfig.load(checkpoint or DEFAULT_CHECKPOINT).base)


def _to_codes(data: bytes, file: Path, checkpoint: Path | None) -> ZSequence:
    """The sequence in the bytes of a file of codes.

    Raises:
        SequenceError: they are damaged, of another version, or of another checkpoint.
    """
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT, codes_fingerprint, read_token_code
    from ztok_rag.codec.sequence import ZSequence, stored_fingerprint

    folder = checkpoint or DEFAULT_CHECKPOINT
    code: TokenCode = read_token_code(folder)
    ours = codes_fingerprint(ZConfig.load(folder), code)
    try:
        theirs = stored_fingerprint(data)
        if theirs != ours:
            raise SequenceError(
                f"its Z-tokens were made by checkpoint {theirs}, and {folder} is {ours}; give that "
                "--checkpoint, or compress the text again."
            )
        return ZSequence.from_bytes(data, code)
    except SequenceError as error:
        raise SequenceError(f"{show(file)}: {error}") from error


def _read_text_or_codes(
    file: Path, checkpoint: Path | None, base: str | None
) -> tuple[str, ZSequence | None, float]:
    """The text of a file, its Z-tokens if it is a file of codes, and the rate to view it at."""
    data = read_bytes(file)
    if not _CODES.match(data):
        return _words(decode(data, file), file), None, 4.0
    from ztok_rag.codec.llm_code import MAGIC
    from ztok_rag.codec.sequence import text_digest

    if data.startswith(MAGIC):
        text, rate = _lossless_text(data, file, checkpoint, base)
        return text, None, rate

    z = _to_codes(data, file, checkpoint)
    text = _join(z, _tokenizer(checkpoint, base)) if z.holds_all else ""
    if z.digest != text_digest(text):
        raise DataError(f"{show(file)} does not hold its whole text; give the text file instead.")
    return text, z, z.rate


def _exact_text(data: bytes, file: Path) -> str:
    """The text whose UTF-8 bytes are `data`; a byte order mark is its first character.

    Raises:
        DataError: there is none, or it has no words.
    """
    encoding = marked_encoding(data)
    if encoding not in (None, "utf-8-sig"):
        raise DataError(
            f"{show(file)} is {encoding.upper()} text, and decompression would give UTF-8; "
            f"convert it first, as by `iconv -f {encoding.upper()} -t UTF-8`."
        )
    mark = "\ufeff" if encoding else ""
    return mark + _words(decode(data, file), file)


def _words(text: str, file: Path) -> str:
    """`text`, if it has any words."""
    if not text.strip():
        raise DataError(f"{show(file)} has no words to compress.")
    return text
