"""The folder of a `ZTokenIndex`: its settings, and atomic changes.

A change is written to a staging folder, which is then renamed. The rename is the commit point.
Afterwards the files are moved to their places; if the process is killed before it is done, the
next one that opens the folder does it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import ZtokError
from ztok_rag.files import write_digests
from ztok_rag.inputs import absolute_path
from ztok_rag.storage.store import ZStore

FORMAT = 2
_MANIFEST = "ztok.json"
_INDEX = "index"
_STORE = "store"
_LOCK = ".lock"
_OWNER = ".owner"
_COMMITTED = ".committed"
LANCE = "lance"
"""`vector_store` of a manifest: the vectors are in the folder, in LanceDB."""
SQLITE = "sqlite"
"""`docstore` of a manifest: the text is in the folder, in SQLite."""
OWN_STORES = (LANCE, SQLITE)

_STAGING = ".staging-"
_BUILDING = ".building-"
_SEGMENTS = ".segments"
_LOCK_SECONDS = 60.0
_CHECKSUM = "checksum"


class FormerIndexError(ZtokError):
    """An index that another version of this package made."""


@dataclass(frozen=True)
class Manifest:
    """Settings that an index was built with.

    Attributes:
        rate: source tokens per Z-token.
        chunk_size: longest chunk, in tokens of the base LLM.
        chunk_overlap: tokens that neighbouring chunks share.
        fingerprint: fingerprint of the checkpoint that compressed the chunks.
        slots: most tokens that a Z-token of that checkpoint holds.
        embed_model: name of the embedding model.
        embed_dimension: dimension of its vectors.
        vector_store: class name of the caller's vector store; empty if the vectors are in the
            folder, in a FAISS store; `"lance"` if they are there in LanceDB.
        revision: random id, new after every change; of a large index, after every change of these
            settings.
        docstore: empty if text is read into memory as a whole; of a large index `"sqlite"`, or the
            class name of the caller's document store.
        store: name of the store of the Z-tokens; empty if it is in the folder.
    """

    rate: float
    chunk_size: int
    chunk_overlap: int
    fingerprint: str
    slots: int
    embed_model: str
    embed_dimension: int
    vector_store: str = ""
    revision: str = ""
    docstore: str = ""
    store: str = ""

    @property
    def is_large(self) -> bool:
        """Whether text and vectors stay on disk."""
        return bool(self.docstore)

    def revised(self) -> Manifest:
        """The same settings under a new revision."""
        return replace(self, revision=secrets.token_hex(8))

    def to_json(self) -> str:
        values = {"format": FORMAT, **asdict(self)}
        return json.dumps({**values, _CHECKSUM: _checksum(values)}, indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            FormerIndexError: the file is of another format.
            ZtokError: it is damaged.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise FormerIndexError(
                    f"the index {path.parent} was made by another version of ztok-rag, and its "
                    f"Z-tokens cannot be read; compress its documents again with `ztok index "
                    f"FOLDER --store {path.parent} --rebuild` or ZTokenIndex.build()."
                )
            checksum = values.pop(_CHECKSUM, None)  # earlier versions wrote none
            if checksum is not None and checksum != _checksum(values):
                raise ValueError("its checksum does not match")
            # Indexes of before could not share a store, and were all held in memory.
            values = {"store": "", "docstore": "", **values}
            types: dict[str, Callable[[Any], Any]] = {"float": float, "int": int, "str": str}
            return cls(**{f.name: types[str(f.type)](values[f.name]) for f in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ZtokError(
                f"{path} is not the settings file of an index, or is damaged ({error!r}); build "
                "the index again in a new folder."
            ) from error


class IndexFolder:
    """Where an index lives: `index/`, `store/` and `ztok.json` in one folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = absolute_path(path)

    @property
    def index(self) -> Path:
        """Folder of the files that LlamaIndex persists."""
        return self.path / _INDEX

    @property
    def store(self) -> Path:
        """Folder of the `ZStore`."""
        return self.path / _STORE

    @property
    def segments(self) -> Path:
        """Folder of what a build on Ray has made so far."""
        return self.path / _SEGMENTS

    def exists(self) -> bool:
        """Whether a whole index is here."""
        return (self.path / _MANIFEST).is_file() or (self.path / _COMMITTED).is_dir()

    def claim(self) -> None:
        """Make the folder, or check that an index may be built in the existing one.

        An index of another version may be replaced.

        Raises:
            ZtokError: it holds other files, or cannot be made or read.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = {entry.name for entry in self.path.iterdir()}
        except (OSError, ValueError) as error:  # a path with a NUL is the second
            raise ZtokError(
                f"an index cannot be built in {self.path} ({error}); give a folder that can be "
                "written."
            ) from error
        if self.exists():
            with suppress(FormerIndexError):
                self.read()
        elif names and not _is_unfinished_build(names):
            raise ZtokError(
                f"{self.path} holds files that are no ztok index; give a new or empty folder."
            )
        else:
            # First of all files, so that what a killed build leaves is known for that.
            self._mark()

    def _mark(self) -> None:
        try:
            (self.path / _LOCK).touch()
        except OSError as error:
            raise ZtokError(
                f"an index cannot be built in {self.path} ({error}); give a folder that can be "
                "written."
            ) from error

    def read(self) -> Manifest:
        """The settings of the index. A change that was interrupted is completed first.

        Raises:
            ZtokError: there is no index, or its settings cannot be read.
        """
        self._require()
        with self.locked(is_reading=True):
            return Manifest.load(self.path / _MANIFEST)

    def settings(self) -> dict[str, Any]:
        """Rate, chunk size and stores of the index, of another version too, as `build` takes them.

        Empty where there is none. Stores of a caller's are left out.
        """
        try:
            values = json.loads((self.path / _MANIFEST).read_text(encoding="utf-8"))
            found = {"rate": float(values["rate"]), "chunk_size": int(values["chunk_size"])}
            for name in ("vector_store", "docstore"):
                if values.get(name) in OWN_STORES:
                    found[name] = values[name]
            return found
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def former_store(self) -> str:
        """Name of the shared store of the index that is here, of another version too; or empty."""
        try:
            values = json.loads((self.path / _MANIFEST).read_text(encoding="utf-8"))
            return str(values.get("store", ""))
        except (OSError, ValueError, AttributeError):
            return ""

    def remove_store(self) -> None:
        """Remove the store in the folder, if there is one, of an index that shares another."""
        if not self.store.is_dir():
            return
        with ZStore(self.store) as store:
            store.prune("", [])  # overwrites what it holds
        shutil.rmtree(self.store, ignore_errors=True)

    def owner(self) -> str:
        """The name that the index pins texts by in a store that it shares; made at first use.

        Raises:
            ZtokError: it cannot be written.
        """
        path = self.path / _OWNER
        try:
            if not path.is_file():
                write_atomic(path, secrets.token_hex(8).encode())
            return path.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise ZtokError(
                f"the index {self.path} cannot be opened ({error}); make its folder writable."
            ) from error

    @property
    def is_read_only(self) -> bool:
        """Whether the folder cannot be written."""
        return not os.access(self.path, os.W_OK)

    def check_writable(self) -> None:
        """Raise `ZtokError` if the index cannot be changed."""
        if self.is_read_only:
            raise ZtokError(
                f"the index {self.path} is read-only and cannot be changed; make its folder "
                "writable."
            )

    @contextmanager
    def locked(self, *, is_reading: bool = False) -> Iterator[None]:
        """Run the body while no other process changes the folder.

        Args:
            is_reading: the body only reads, so a folder that cannot be written will do. Whoever
                can write in it is not kept from doing so then.

        Raises:
            ZtokError: another process holds the folder for a minute, or it cannot be written.
        """
        if is_reading and self.is_read_only:
            if (self.path / _COMMITTED).is_dir():
                raise ZtokError(
                    f"a change of the index {self.path} was interrupted and is not finished, and "
                    "the folder is read-only; open the index once where it can be written."
                )
            yield
            return
        lock = FileLock(self.path / _LOCK, timeout=_LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout as error:
            raise ZtokError(
                f"another process is changing the index {self.path}; wait until it is done."
            ) from error
        except OSError as error:
            raise ZtokError(
                f"the index {self.path} cannot be opened ({error}); make its folder writable."
            ) from error
        try:
            self._finish()
            self._sweep()
            yield
        finally:
            lock.release()

    @contextmanager
    def replacing(self, old: str | None, manifest: Manifest) -> Iterator[Path]:
        """Give the body a folder to write the index into, and commit it after the body.

        Args:
            old: the revision to replace; `None` replaces any, or none.
            manifest: settings of the new index.

        Raises:
            ZtokError: another process has changed the index, or the disk cannot be written.
        """
        with self.locked():
            if old is not None:
                self._check_revision(old)
            try:
                staging = Path(tempfile.mkdtemp(dir=self.path, prefix=_STAGING))
                (staging / _INDEX).mkdir()
                yield staging / _INDEX
                write_digests(staging / _INDEX)
                (staging / _MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
                os.rename(staging, self.path / _COMMITTED)
            except (OSError, RuntimeError) as error:  # FAISS raises the latter
                raise ZtokError(
                    f"the index {self.path} cannot be written ({error}); it stays as it was."
                ) from error
            finally:
                self._sweep()
            self._finish()

    @contextmanager
    def changing(self, old: str) -> Iterator[None]:
        """Run the body, which changes the files in place, while no other process does.

        Args:
            old: the revision that the index must have; empty while it is being built.

        Raises:
            ZtokError: another process has built the index anew, or the folder cannot be written.
        """
        with self.locked():
            if old:
                self._check_revision(old)
            yield

    def write(self, manifest: Manifest) -> None:
        """Write new settings beside the files that are there, within `changing`.

        Raises:
            ZtokError: the disk cannot be written; the old settings stay.
        """
        write_atomic(self.path / _MANIFEST, manifest.to_json().encode())

    @contextmanager
    def building(self) -> Iterator[Path]:
        """A folder to build an index in, beside the one that is there; removed after the body.

        What a killed build has left is removed by the next process that opens the index.
        """
        with self.locked():
            target = Path(tempfile.mkdtemp(dir=self.path, prefix=_BUILDING))
            held = FileLock(f"{target}{_LOCK}")
            held.acquire()
        try:
            yield target
        finally:
            shutil.rmtree(target, ignore_errors=True)
            held.release()
            Path(held.lock_file).unlink(missing_ok=True)

    def adopt(self, built: Path, manifest: Manifest) -> None:
        """Make an index that was built in `built/index` that of the folder.

        Raises:
            ZtokError: the disk cannot be written; the old index stays.
        """
        with self.locked():
            try:
                (built / _MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
                os.rename(built, self.path / _COMMITTED)
            except OSError as error:
                raise ZtokError(
                    f"the index {self.path} cannot be written ({error}); it stays as it was."
                ) from error
            self._finish()

    def _check_revision(self, old: str) -> None:
        if Manifest.load(self.path / _MANIFEST).revision != old:
            raise ZtokError(f"the index {self.path} was changed by another process; load it again.")

    def _require(self) -> None:
        if not self.exists():
            raise ZtokError(
                f"there is no index in {self.path}; make one with `ztok index` or "
                "ZTokenIndex.build()."
            )

    def _finish(self) -> None:
        """Move committed files to their places; the next call completes an interrupted move."""
        committed = self.path / _COMMITTED
        if not committed.is_dir():
            return
        if (committed / _INDEX).is_dir():
            if self.index.exists():
                shutil.rmtree(self.index)
            os.rename(committed / _INDEX, self.index)
        if (committed / _MANIFEST).is_file():
            os.replace(committed / _MANIFEST, self.path / _MANIFEST)
        shutil.rmtree(committed)

    def _sweep(self) -> None:
        """Remove the staging folders of interrupted changes, which hold text of documents."""
        for leftover in self.path.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        names = {str(p).removesuffix(_LOCK) for p in self.path.glob(f"{_BUILDING}*")}
        for leftover in map(Path, names):
            lock = FileLock(f"{leftover}{_LOCK}", timeout=0)
            with suppress(Timeout, OSError), lock:  # whoever builds there holds it
                shutil.rmtree(leftover, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)


def _checksum(values: dict[str, Any]) -> str:
    """8 hex digits of settings."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _is_unfinished_build(names: set[str]) -> bool:
    """Whether a folder with these entries was left by a first build that was killed."""
    passing = (_STAGING, _BUILDING, f".{_OWNER}.")
    others = {name for name in names if not name.startswith(passing)}
    return bool(names & {_LOCK, _OWNER}) and others <= {_LOCK, _STORE, _OWNER, _SEGMENTS}
