"""The entries of a store as a query sees them: what goes wrong with their database is a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from ztok_rag.errors import ZtokError
from ztok_rag.storage.backends import Backend, BackendError, ReadOnlyError
from ztok_rag.storage.pending import Pending

T = TypeVar("T")

_CALLER = 6  # frames from here to whoever asked the store, for warnings


class Entries:
    """The entries of a backend, and those that wait to be written to it."""

    def __init__(self, backend: Backend, name: str) -> None:
        """Set up.

        Args:
            backend: the database.
            name: of the store, for messages.
        """
        self._backend = backend
        self._name = name
        self._pending = Pending()

    def get(self, keys: Sequence[str]) -> dict[str, bytes | ValueError]:
        """The values of keys; an error in the place of one that is damaged.

        A failure to read is a warning, and nothing is there.
        """
        found: dict[str, bytes | ValueError] = {}
        try:
            found = self._backend.get_many(keys)
        except BackendError as error:
            warnings.warn(
                f"the store {self._name} cannot be read ({error}); texts are compressed until it "
                "can.",
                stacklevel=_CALLER,
            )
        else:
            if self._pending:
                with suppress(BackendError):
                    self._pending.write(self._backend)
        if self._pending:
            found |= self._pending.get([key for key in keys if key not in found])
        return found

    def put(self, entries: Mapping[str, bytes], *, replaces: bool = False) -> dict[str, bytes]:
        """Write entries, unless they are there. A failure to write is a warning, and they wait.

        Args:
            entries: value by key.
            replaces: whether they take the place of what is there.

        Returns:
            What was there before and stays, by key.
        """
        try:
            if self._pending:
                self._pending.write(self._backend)
            return self._backend.put_many(entries, replace=replaces)
        except BackendError as error:
            if not isinstance(error, ReadOnlyError):
                self._pending.add(entries, replace=replaces)
            self._warn_unwritten(error)
            return {}

    def discard(self, key: str) -> None:
        """Delete a damaged entry, if that is possible."""
        with suppress(BackendError):
            self._backend.delete_many([key])

    def pin(self, owner: str, hashes: set[str]) -> None:
        """Pin texts. A failure is a warning, and the pins wait to be written."""
        try:
            if self._pending:
                self._pending.write(self._backend)
            self._backend.pin(owner, hashes)
        except BackendError as error:
            if not isinstance(error, ReadOnlyError):
                self._pending.add_pins(owner, hashes)
                self._warn_unwritten(error)

    def unpin(self, owner: str, hashes: set[str]) -> None:
        """Unpin texts. A failure is a warning."""
        try:
            self._backend.unpin(owner, hashes)
        except BackendError as error:
            if not isinstance(error, ReadOnlyError):
                self._warn_unwritten(error)

    def read(self, ask: Callable[[], T]) -> T:
        """What the backend answers.

        Raises:
            ZtokError: it does not.
        """
        try:
            return ask()
        except BackendError as error:
            raise ZtokError(
                f"the store {self._name} cannot be read ({error}); mend that, and ask again."
            ) from error

    def delete_texts(self, hashes: set[str], owner: str | None) -> int:
        """Delete the entries of texts as by `Backend.delete_contents`, also those that wait.

        Raises:
            ZtokError: the store cannot be written.
        """
        with self._pending.lock:  # else what is being written now would come back
            self._pending.forget(hashes)
            return self._deleted(lambda: self._backend.delete_contents(hashes, owner=owner))

    def delete(self, delete: Callable[[], int]) -> int:
        """Write what waits, then delete.

        Args:
            delete: returns the number of entries that it deleted.

        Raises:
            ZtokError: the store cannot be written.
        """

        def write_and_delete() -> int:
            self._backend.end_pause()
            self._pending.write(self._backend)
            return delete()

        with self._pending.lock:
            return self._deleted(write_and_delete)

    def close(self) -> None:
        """Write what waits, and close connections. A failure to write is a warning."""
        self._backend.end_pause()
        try:
            self._pending.write(self._backend)
        except BackendError as error:
            warnings.warn(
                f"the store {self._name} cannot be written ({error}); {len(self._pending)} entries "
                "wait in memory, and are compressed again if this process ends.",
                stacklevel=3,
            )
        self._backend.close()

    def _deleted(self, delete: Callable[[], int]) -> int:
        """Delete, and remove what was deleted from logs, too."""
        if self._backend.is_read_only:
            raise ZtokError(
                f"the store {self._name} is read-only; make its folder writable and open it again."
            )
        try:
            count = delete()
            is_gone = not count or self._backend.empty_log()
        except BackendError as error:
            raise ZtokError(
                f"entries of the store {self._name} cannot be deleted ({error}); make it writable "
                "and delete again."
            ) from error
        if not is_gone:
            warnings.warn(
                f"the log of the store {self._name} is in use; what was deleted stays in it until "
                "the next deletion, or until every process has closed the store.",
                stacklevel=_CALLER - 2,
            )
        return count

    def _warn_unwritten(self, error: BackendError) -> None:
        warnings.warn(
            f"the store {self._name} cannot be written ({error}); "
            "texts will be compressed again until it can.",
            stacklevel=_CALLER,
        )
