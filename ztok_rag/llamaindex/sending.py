"""Copies of components, in this process and in others.

LlamaIndex's own components drop what cannot be pickled, and are then made again without it. Those
of this package are made again with all that they were made with.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

Component = TypeVar("Component", bound=BaseModel)

_DROPPED = ("callback_manager",)  # its handlers are of one process


class MadeAgain:
    """A component whose copies are made from its fields and its parts. Put it first of the bases.

    A copy in this process shares the parts. One in another process loads them there.
    """

    def _parts(self) -> dict[str, Any]:
        """Arguments of the class that are no fields."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        assert isinstance(self, BaseModel)
        fields = {
            name: getattr(self, name) for name in type(self).model_fields if name not in _DROPPED
        }
        return _make, (type(self), {**fields, **self._parts()})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        make, arguments = self.__reduce__()
        return make(*arguments)


def _make(cls: type[Component], arguments: dict[str, Any]) -> Component:
    return cls(**arguments)
