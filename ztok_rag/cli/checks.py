"""The checks of `ztok doctor`: each says what it found, or raises what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from ztok_rag.cli.arguments import check_device, load_compressor
from ztok_rag.cli.console import describe
from ztok_rag.cli.output import check_folder, literal
from ztok_rag.cli.place import Place
from ztok_rag.errors import ZtokError
from ztok_rag.files import show

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.storage.store import ZStore

PACKAGE = "ztok-rag"
ROOM = 500 * 2**20
"""Bytes that should be free in a folder: the default base LLM takes half of them."""

_TEXT = "The lighthouse on Gull Rock was built in 1873 by the engineer Marta Lindqvist."
_QUESTION = "\n\nQuestion: Who built the lighthouse?\nAnswer:"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: of what was checked.
        ok: whether it is as it should be.
        text: what was found; else the problem and its remedy.
    """

    name: str
    ok: bool
    text: str


@dataclass
class Checks:
    """The installation to check.

    Attributes:
        store: folder of an index or of a store, or URL of a store; `None` is the default store.
        checkpoint: `None` is the one shipped.
        base: base LLM; `None` is the checkpoint's.
        device: `None` is CUDA if there is any, else the CPU.
    """

    store: str | Path | None = None
    checkpoint: Path | None = None
    base: str | None = None
    device: str | None = None

    def run(self) -> Iterator[Finding]:
        """Run all checks in order; none stops those after it."""
        for name, check in {
            "python": _python,
            "packages": check_packages,
            "device": self.check_device,
            "cache folder": self.check_cache,
            "store": self.check_store,
            "disk space": self.check_room,
            "checkpoint": self.check_checkpoint,
            "base LLM": self.check_base,
            "embedding model": check_embedding,
            "compression": self.check_compression,
            "answer": self.check_answer,
        }.items():
            yield find(name, check)

    def check_device(self) -> str:
        """The device, its memory and the number format of the base."""
        import torch

        from ztok_rag.codec.base import default_dtype, dtype_name

        check_device(self.device)
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        text = f"{device}, {dtype_name(default_dtype(device))}"
        if device.type != "cuda":
            return text
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return f"{text}, {name}, {_gigabytes(free)} of {_gigabytes(total)} free"

    def check_cache(self) -> str:
        """The cache folder, which must be there or be made, and take files."""
        from ztok_rag.codec.base import cache_dir

        try:
            return _writable(cache_dir())
        except ZtokError as error:
            raise ZtokError(f"{error} ZTOK_CACHE names another one.") from error

    def check_store(self) -> str:
        """The index or the store that is named; else the default store."""
        from ztok_rag.index.folder import IndexFolder

        if self.store is None:
            return _writable(self._default_store())
        place = Place.of(str(self.store))
        if place.url is not None:
            return self._redis(place)
        folder = place.folder
        if not folder.is_dir():
            raise ZtokError(
                f"{show(folder)} is not a folder; make an index with `ztok index FOLDER --store "
                f"{show(self.store)}`."
            )
        is_there = IndexFolder(folder).exists() or (folder / "cache.db").is_file()
        if is_there and not os.access(folder, os.W_OK):
            found = f"{show(folder)}, read-only"
        else:
            found = _writable(folder)
        if IndexFolder(folder).exists():
            return f"{found}, {self._index(folder)}"
        if not (folder / "cache.db").is_file():
            raise ZtokError(
                f"{show(folder)} holds no index and no store; make one with `ztok index FOLDER "
                f"--store {show(self.store)}`."
            )
        return f"{found}, a store"

    def check_room(self) -> str:
        """Free space where the cache and the store lie."""
        from ztok_rag.codec.base import cache_dir

        store = Place.of(str(self.store or self._default_store())).folder
        places = [_nearest(literal(p)) for p in (cache_dir(), store)]
        disks = {place.stat().st_dev: place for place in reversed(places)}
        free = {place: shutil.disk_usage(place).free for place in disks.values()}
        for place, room in free.items():
            if room < ROOM:
                raise ZtokError(
                    f"only {_gigabytes(room)} are free in {show(place)}; make room, or name "
                    "another folder in ZTOK_CACHE or --store."
                )
        return ", ".join(
            f"{_gigabytes(room)} free in {show(place)}" for place, room in free.items()
        )

    def check_checkpoint(self) -> str:
        """The checkpoint's settings and weights."""
        from ztok_rag.codec.config import ZConfig
        from ztok_rag.codec.model import DEFAULT_CHECKPOINT, codes_fingerprint, read_state

        folder = self.checkpoint or DEFAULT_CHECKPOINT
        config = ZConfig.load(folder)
        *_, code = read_state(folder)
        return f"{show(folder)}, {codes_fingerprint(config, code)}"

    def check_base(self) -> str:
        """The base LLM, which the checkpoint must fit."""
        base = self.compressor.model.base
        return f"{show(base.name)}, {base.num_layers} layers, {base.max_positions:,} positions"

    def check_compression(self) -> str:
        """A text that must come back from its Z-tokens."""
        compressor = self._loaded()
        (z,) = compressor.compress([_TEXT], 4)
        if compressor.decompress([z]) != [_TEXT]:
            raise ZtokError(
                "a text did not come back from its Z-tokens; install the packages at the versions "
                "that ztok-rag declares."
            )
        return f"{z.source_tokens} tokens -> {len(z)} Z-tokens, and back exactly"

    def check_answer(self) -> str:
        """An answer that the reader gives from Z-tokens."""
        compressor = self._loaded()
        (z,) = compressor.compress([_TEXT], 4)
        (answer,) = compressor.reader.generate([[z, _QUESTION]], max_new_tokens=16)
        if not answer.strip():
            raise ZtokError("the reader wrote nothing; give another --checkpoint.")
        return show(" ".join(answer.split()))

    @cached_property
    def compressor(self) -> ZCompressor:
        """The compressor, loaded once."""
        return load_compressor(self.checkpoint, self.base, self.device)

    def _loaded(self) -> ZCompressor:
        """The compressor, if the check of the base could load it."""
        if "compressor" not in vars(self):
            raise ZtokError("not tried, as there is no base LLM; mend that first.")
        return self.compressor

    def _redis(self, place: Place) -> str:
        """What a store in Redis holds, and the index in its default folder, if there is one."""
        from ztok_rag.index.folder import IndexFolder

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            store = place.open_store()
        assert store is not None
        with store:
            if caught:  # such as a policy that evicts
                raise ZtokError(str(caught[0].message))
            found = f"{store.name}, a store of {len(store):,} entries, {store.size_bytes:,} bytes"
            if IndexFolder(place.folder).exists():
                return f"{found}, {self._index(place.folder, store)}"
            return found

    def _index(self, folder: Path, store: ZStore | None = None) -> str:
        """What an index holds; its Z-tokens must be of the checkpoint."""
        from ztok_rag.codec.config import ZConfig
        from ztok_rag.codec.model import DEFAULT_CHECKPOINT, codes_fingerprint, read_token_code
        from ztok_rag.index.folder import IndexFolder
        from ztok_rag.index.index import ZTokenIndex

        checkpoint = self.checkpoint or DEFAULT_CHECKPOINT
        theirs = IndexFolder(folder).read().fingerprint
        ours = codes_fingerprint(ZConfig.load(checkpoint), read_token_code(checkpoint))
        if theirs != ours:
            raise ZtokError(
                f"the index {show(folder)} was compressed by checkpoint {theirs}, and "
                f"{show(checkpoint)} is {ours}; give that --checkpoint, or run `ztok index` again."
            )
        index = ZTokenIndex.load(folder, store=store)
        try:
            held = index.stats()
        finally:
            index.close()
        text = f"an index of {held.documents} documents, {held.chunks} chunks"
        return f"{text}, {held.pending} of them not compressed" if held.pending else text

    @staticmethod
    def _default_store() -> Path:
        from ztok_rag.codec.base import cache_dir

        return cache_dir() / "store"


def find(name: str, check: Callable[[], str]) -> Finding:
    """Run a check. Whatever it raises is a problem of what it checks."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Finding(name, True, check())
    except ZtokError as error:
        return Finding(name, False, show(str(error)))
    except OSError as error:
        return Finding(name, False, describe(error))
    except Exception as error:  # a check may fail in any package below
        cause = (str(error).strip() or repr(error)).splitlines()[0]
        return Finding(
            name,
            False,
            show(f"{type(error).__name__}: {cause}; install the packages that ztok-rag declares."),
        )


def check_packages() -> str:
    """The packages, at versions that ztok-rag declares."""
    try:
        declared = [Requirement(line) for line in requires(PACKAGE) or ()]
        own = version(PACKAGE)
    except PackageNotFoundError as error:
        raise ZtokError(f"{PACKAGE} is not installed; run `pip install {PACKAGE}`.") from error
    needed = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [(r, found) for r in needed if not _fits(r, found := _version(r.name))]
    if wrong:
        found = ", ".join(f"{r.name} is {found or 'not installed'}" for r, found in wrong)
        install = " ".join(f'"{r.name}{r.specifier}"' for r, _ in wrong)
        raise ZtokError(f"{found}; run `pip install {install}`.")
    return f"{PACKAGE} {own}, and {len(needed)} packages at versions that it declares"


def check_embedding() -> str:
    """The default embedding model."""
    from ztok_rag.selection.embedding import DEFAULT_EMBEDDING, default_embedder

    vector = default_embedder().get_query_embedding("lighthouse")
    return f"{DEFAULT_EMBEDDING}, {len(vector)} dimensions"


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform(terse=True)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _fits(requirement: Requirement, found: str | None) -> bool:
    # A build of a declared version is good, as torch's 2.9.0+cpu is; so is a pre-release.
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _writable(folder: Path) -> str:
    """A folder that takes files, or can be made.

    Raises:
        ZtokError: it does not, and cannot.
    """
    if not folder.is_dir():
        check_folder(folder)
        return f"{show(folder)}, not made yet"
    check_folder(folder)
    return show(folder)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
