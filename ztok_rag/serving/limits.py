"""How much one server takes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ztok_rag.errors import ZtokError


@dataclass(frozen=True)
class Limits:
    """What a server takes at most. Memory is bounded by these together.

    Attributes:
        body_bytes: of one request's body.
        body_seconds: for a request's body to arrive.
        prompt_tokens: positions of one prompt, where a Z-token is one; `None` is what the reader
            reads.
        answer_tokens: of one answer.
        requests: at once, those that wait included; one more is told to come again.
        prompts: of one request for completions.
        shutdown_seconds: for requests under way to end, once the server is to stop.
    """

    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    prompt_tokens: int | None = None
    answer_tokens: int = 1024
    requests: int = 128
    prompts: int = 16
    shutdown_seconds: int = 30

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ZtokError(f"the limit {name} must be more than 0, not {value}.")
