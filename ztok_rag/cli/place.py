"""Where an index lies: what `--store` and `--folder` name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ztok_rag.cli.output import literal
from ztok_rag.errors import DataError
from ztok_rag.storage.url import StoreUrl, is_url

if TYPE_CHECKING:
    from ztok_rag.storage.store import ZStore

STORE_HELP = "Folder that `ztok index` wrote, or the URL of a store in Redis."
FOLDER_HELP = (
    "Folder of the documents and vectors where --store is a URL; default: one in the cache folder."
)


@dataclass(frozen=True)
class Place:
    """Where an index is.

    Attributes:
        folder: of its documents and vectors.
        url: of the store that its Z-tokens are in; `None` if they are in the folder.
    """

    folder: Path
    url: StoreUrl | None

    @classmethod
    def of(cls, store: str, folder: Path | None = None) -> Place:
        """What the options name.

        Raises:
            DataError: a folder is named twice.
            ZtokError: the URL is malformed.
        """
        if not is_url(store):
            if folder is not None:
                raise DataError(
                    "--folder goes with a --store that is a URL; leave it out, as --store names "
                    "the folder."
                )
            return cls(literal(Path(store)), None)
        url = StoreUrl.parse(store)
        return cls(literal(folder) if folder is not None else _default_folder(url), url)

    def open_store(self) -> ZStore | None:
        """The store in Redis; `None` if there is none.

        Raises:
            ZtokError: it cannot be opened.
        """
        from ztok_rag.storage.store import ZStore

        return None if self.url is None else ZStore(self.url)


def _default_folder(url: StoreUrl) -> Path:
    from ztok_rag.codec.base import cache_dir

    name = hashlib.blake2b(url.name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return cache_dir() / "indexes" / name
