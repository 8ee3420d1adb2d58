"""What requests ask for, field by field.

Answers are decoded greedily. A field that could only change how tokens are drawn (`temperature`,
`top_p`, `seed`) is taken and has no effect; one whose effect would be missed is refused unless it
has the value that asks for nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi_openai_compat import MessageParam
from pydantic import BaseModel, ConfigDict, Field

_MOST_STOPS = 16


class StreamOptions(BaseModel):
    """Of a stream: whether its last event has the usage."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class _Options(BaseModel):
    """What chats and completions have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: int | None = Field(default=None, gt=0)
    min_tokens: int | None = Field(default=None, gt=0)  # not in OpenAI's API, but in vLLM's
    stop: str | list[str] | None = Field(default=None)
    stream: bool = False
    stream_options: StreamOptions | None = None

    # Of how tokens are drawn: without effect.
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    # Refused, except for the value that asks for nothing.
    n: Literal[1] | None = None
    logit_bias: dict[str, Literal[0]] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop][:_MOST_STOPS]

    @property
    def longest(self) -> int | None:
        """Longest answer asked for, in tokens."""
        return self.max_tokens


class CompletionRequest(_Options):
    """`POST /v1/completions`."""

    prompt: str | list[str]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts; an answer to each is a choice."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ResponseFormat(BaseModel):
    """The form of an answer: text."""

    type: Literal["text"]


class ChatRequest(_Options):
    """`POST /v1/chat/completions`."""

    messages: list[MessageParam] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, gt=0)
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class RagRequest(BaseModel):
    """`POST /v1/indexes/NAME/rag`."""

    model_config = ConfigDict(extra="forbid")

    question: str
    similarity_top_k: int = Field(default=3, ge=1, le=64)
    max_tokens: int | None = Field(default=None, gt=0)
    stream: bool = False
