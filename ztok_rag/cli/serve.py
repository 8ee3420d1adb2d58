"""`ztok serve`: an OpenAI-compatible server."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated

import typer

from ztok_rag.cli.arguments import load_compressor
from ztok_rag.cli.console import say
from ztok_rag.cli.output import literal
from ztok_rag.errors import DataError, ZtokError
from ztok_rag.files import show
from ztok_rag.storage.url import is_url

_PACKAGES = ("fastapi", "fastapi_openai_compat", "uvicorn")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 8000,
    index: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FOLDER", help="Index that can be asked; may be given several times."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Store whose handles prompts may have, a folder or the URL of one in Redis; "
            "indexes that share a store are read from it. Default: the user's own."
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    device: Annotated[str | None, typer.Option(help="Default: cuda if there is one.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File of the tokens that are accepted, one a line; default: the environment's "
            "ZTOK_API_KEY. Needed where other machines reach the server."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name under which the server may be asked; may be given several times. Default: "
            "without a token this machine's own, else any."
        ),
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="In PEM; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="In PEM.")] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 4 * 2**20,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt; default: what the LLM reads.")
    ] = None,
    max_answer: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 1024,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests at once, those that wait included.")
    ] = 128,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers written in one pass.")] = 16,
) -> None:
    """Serve chat, completions and indexes over HTTP, as OpenAI's API."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ZtokError(
                f"serving needs the package {package}; run `pip install 'ztok-rag[serve]'`."
            )
    if (tls_certificate is None) != (tls_key is None):
        raise DataError("TLS needs both --tls-certificate and --tls-key; give the other, too.")
    named = _named(index or [])
    if store is not None and not is_url(store) and not literal(Path(store)).is_dir():
        raise DataError(f"{show(store)} is no store; name the folder of one, or its URL.")

    from ztok_rag.serving.limits import Limits
    from ztok_rag.serving.tokens import check_reachable, is_loopback, load_tokens

    tokens = load_tokens(token_file)
    check_reachable(host, tokens)
    hosts = allowed_host
    if hosts is None and tokens is None and is_loopback(host):
        hosts = ["localhost", "127.0.0.1", "::1", host]
    limits = Limits(
        body_bytes=max_body,
        prompt_tokens=max_prompt,
        answer_tokens=max_answer,
        requests=max_requests,
    )

    from ztok_rag.index.folder import IndexFolder
    from ztok_rag.index.index import ZTokenIndex
    from ztok_rag.llamaindex.llm import DEFAULT_MODEL, ZTokenLLM
    from ztok_rag.serving.app import create_app
    from ztok_rag.serving.run import listen, serve
    from ztok_rag.storage.store import ZStore

    # Folders and store are opened before any model is loaded.
    shares = {name for name, folder in named.items() if IndexFolder(folder).read().store}
    accepted = None
    if store is not None:
        accepted = ZStore(store if is_url(store) else literal(Path(store)))
    with listen(host, port) as opened:
        compressor = load_compressor(checkpoint, device=device)
        compressor.reader.batcher.max_rows = max_batch
        llm = ZTokenLLM(reader=compressor.reader, store=accepted)
        indexes = {
            name: ZTokenIndex.load(
                folder, compressor=compressor, store=accepted if name in shares else None
            )
            for name, folder in named.items()
        }
        for loaded in indexes.values():  # so that the first question does not wait for it
            _ = loaded.embed_model
        app = create_app({DEFAULT_MODEL: llm}, indexes, tokens=tokens, limits=limits, hosts=hosts)
        address, bound = opened.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        scheme = "https" if tls_certificate else "http"
        say(f"serving {', '.join([DEFAULT_MODEL, *indexes])} on {scheme}://{shown}:{bound}/v1")
        serve(app, opened, limits, certificate=tls_certificate, key=tls_key)


def _named(given: list[str]) -> dict[str, Path]:
    """Folders of indexes by name; the name of a folder is its own where none is given.

    Raises:
        DataError: a name is not fit for an address, or is given twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, separator, rest = text.partition("=")
        folder = literal(Path(rest if separator else text))
        name = name if separator else folder.name
        if not _NAME.fullmatch(name):
            raise DataError(
                f"{show(name)!r} is no name for an index; give one of letters, digits, dots, "
                "hyphens and underscores, as --index NAME=FOLDER."
            )
        if name in found:
            raise DataError(f"two indexes are named {name!r}; give --index NAME=FOLDER.")
        found[name] = folder
    return found
