"""The rows of `results.json`: every field that a row can have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

COST_FIELDS = ("context_tokens", "bytes_per_source_token", "prefill_ms", "ttft_ms", "kv_bytes")
"""What every row says of an arm's cost, as null where it was not measured."""


@dataclass
class Row:
    """One row of `results.json`: a score of one arm, with what that arm costs.

    The fields up to `kv_bytes` are always written, as null where there is no value. Those below
    it are written only where they have a value.

    Attributes:
        benchmark: what was run, such as `rag_qa`.
        task: the data set, or what was measured.
        arm: the way in which the context was given.
        rate: source tokens per Z-token asked for; 1 for raw text, `None` without context.
        k: number of retrieved chunks; 0 where nothing was retrieved.
        metric: name of the score.
        score: 0 to 100, unless the metric names another unit.
        ci95: 95% bootstrap interval of the score.
        n: number of questions, texts or measurements.
        context_tokens: mean positions of LLM input that the context takes.
        bytes_per_source_token: stored bytes per source token.
        prefill_ms: mean milliseconds of the forward pass over the prompt.
        ttft_ms: mean milliseconds to the first token.
        kv_bytes: mean bytes of the KV cache after the prompt.
        source_tokens: mean tokens of the context's text.
        source_tokens_per_position: source tokens per position of the context.
        real_rate: source tokens per Z-token that is read, in all looks together.
        truncated: number of prompts that were cut to what the base LLM can read.
        measured: number of questions whose prefill was timed.
        gold_retrieved: share, 0 to 1, of the questions whose gold paragraph was retrieved.
        shorten_ms: mean milliseconds to shorten the chunks as text.
        postprocess_ms: mean milliseconds to look up or make the Z-tokens that are read.
        look_ms: mean milliseconds of a first look, which prefill and first token include.
        p10: 10th percentile of the measurements.
        p90: 90th percentile of the measurements.
        windows: windows compressed in one measurement.
        batch_tokens: most padded tokens in a batch.
        compress_ms: milliseconds to compress the context.
        z_tokens: Z-tokens of the context.
        llm_calls: mean calls of the LLM per query.
        compressed: mean chunks compressed per query.
        answer_tokens: mean tokens of an answer.
        answers: the answers given.
        chunks: number of chunks in the index.
        what: the variant in a few words.
        fingerprint: of the checkpoint.
    """

    benchmark: str
    task: str
    arm: str
    rate: float | None
    k: int
    metric: str
    score: float
    ci95: tuple[float, float]
    n: int
    context_tokens: float | None = None
    bytes_per_source_token: float | None = None
    prefill_ms: float | None = None
    ttft_ms: float | None = None
    kv_bytes: float | None = None
    # Of questions.
    source_tokens: float | None = None
    source_tokens_per_position: float | None = None
    real_rate: float | None = None
    truncated: int | None = None
    measured: int | None = None
    gold_retrieved: float | None = None
    shorten_ms: float | None = None
    postprocess_ms: float | None = None
    look_ms: float | None = None
    # Of timings.
    p10: float | None = None
    p90: float | None = None
    windows: int | None = None
    batch_tokens: int | None = None
    compress_ms: float | None = None
    z_tokens: int | None = None
    llm_calls: float | None = None
    compressed: float | None = None
    answer_tokens: float | None = None
    answers: list[str] | None = None
    chunks: int | None = None
    # Of variants and checkpoints.
    what: str | None = None
    fingerprint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields to write, with floats rounded to 4 decimals."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: _rounded(value)
            for name, value in values.items()
            if value is not None or name == "rate" or name in COST_FIELDS
        }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
