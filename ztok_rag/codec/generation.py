"""Greedy decoding of prompts that are given as input embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor
from transformers.cache_utils import DynamicLayer

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.chains import Chains
from ztok_rag.codec.speculation import Draft, Drafter, Trust, choose_width

_LEAST_TRUST = 0.35  # below, guesses of an answer are given up


@dataclass(eq=False)
class Answer:
    """An answer while it is written.

    Attributes:
        inputs: `[positions, hidden]` input embeddings of the prompt.
        limit: longest answer, in tokens.
        processor: changes the scores of the next token; `None` leaves them.
        drafter: looks up what comes next; `None` does not.
        guesses: whether a write head may guess what comes next where nothing is looked up.
        on_read: is given the states `[positions, hidden]` of the prompt in the middle of the LLM,
            before the first token is written.
        tokens: the ids written so far; an end token comes last.
        done: whether it is whole. A caller that wants no more may set it.
        ended: whether an end token was written.
        state: `[hidden]` of the LLM, from which the last token was written.
        trust: of the guesses.
    """

    inputs: Tensor
    limit: int
    processor: LogitsProcessor | None = None
    drafter: Drafter | None = None
    guesses: bool = False
    on_read: Callable[[Tensor], None] | None = None
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    ended: bool = False
    state: Tensor | None = None
    trust: Trust = field(default_factory=Trust)

    @property
    def room(self) -> int:
        """Most tokens of a draft."""
        return self.limit - len(self.tokens) - 1

    def draft(self) -> Draft:
        """What may come next, looked up, short enough for the limit."""
        if self.drafter is None or self.room < 1:
            return Draft()
        return self.drafter.draft().cut(self.room)

    def verify(self, logits: Tensor, draft: Draft, ends: set[int]) -> int:
        """Write the tokens that greedy decoding gives.

        Args:
            logits: `[1 + tokens of the draft or more, vocabulary]` after the last token written,
                and after each of the draft.
            draft: the tokens that these positions read.
            ends: tokens that end an answer.

        Returns:
            How many tokens were written: those of the draft that are right, and the next.
        """
        before = len(self.tokens)
        for place in range(len(draft) + 1):
            scores = logits[place].float().unsqueeze(0)
            if not self.tokens:
                scores[:, sorted(ends)] = -torch.inf
            if self.processor is not None:
                scores = self.processor(torch.tensor([self.tokens], dtype=torch.long), scores)
            token = int(scores[0].argmax())
            self.tokens.append(token)
            self.ended = token in ends
            self.done = self.ended or len(self.tokens) >= self.limit
            if self.done or place == len(draft) or token != draft.tokens[place]:
                break
        written = len(self.tokens) - before
        if draft.is_guess:
            self.trust.learn(draft, written - 1)
        if self.drafter is not None:
            if not draft.is_guess:
                self.drafter.learn(draft, written - 1)
            self.drafter.extend(self.tokens[before:])
        return written


class GreedyDecoder:
    """Writes answers together, token by token or in drafts that are confirmed.

    The pass that confirms a draft reads the token before it, too. Positions of a draft that was
    wrong are cut off the KV cache where they are last in every row, and masked elsewhere.

    Attributes:
        rows: the answers that are being written.
        passes: of the LLM so far; the first reads the prompts.
        guessed: of the last pass, tokens of each guess and how many of them were right.
    """

    def __init__(
        self,
        base: BaseLM,
        answers: Sequence[Answer],
        adapter: str | None,
        chains: Chains | None = None,
        middle: int | None = None,
    ) -> None:
        """Set up; nothing is read yet.

        Args:
            base: the LLM; it is held during `advance` only.
            answers: each is added to while it is written.
            adapter: of the base.
            chains: what guesses, for answers that want it.
            middle: number of layers after which states are what `Answer.on_read` is given; `None`
                gives none.
        """
        self.base = base
        self.adapter = adapter
        self.rows = list(answers)
        self.passes = 0
        self.guessed: list[tuple[int, int]] = []
        self._middle = middle
        self._alone = len(self.rows) == 1  # its mask then says nothing
        self._ends = base.end_tokens
        self._cache = DynamicCache(config=base.model.config)
        # Layers that keep a window or a state of what they read cannot take a draft back.
        self._drafts = all(type(layer) is DynamicLayer for layer in self._cache.layers)
        self._chains = chains if self._drafts else None
        self._mask: Tensor  # [rows, positions in the cache], zero where there is nothing to see

    @property
    def done(self) -> bool:
        """Whether all answers are whole."""
        return all(row.done for row in self.rows)

    @property
    def joins(self) -> bool:
        """Whether `join` can be called: each layer of the cache keeps all that it read."""
        return self._drafts

    @torch.inference_mode()
    def join(self, other: GreedyDecoder) -> None:
        """Write the answers of another decoder, which is used up, together with these.

        Both have read their prompts, with the same base and adapter. The shorter cache is padded
        on the left, where the mask hides it, so that neither reads anything again.
        """
        assert self.joins and self.passes and other.passes and self.adapter == other.adapter
        for decoder in (self, other):
            decoder._drop_done()
        if not other.rows:
            return
        if not self.rows:
            self.rows, self._cache, self._mask = other.rows, other._cache, other._mask
            self._alone, self._chains = other._alone, other._chains
            return
        width = max(self._mask.shape[1], other._mask.shape[1])
        masks = [_widen(decoder._mask, width, dim=1) for decoder in (self, other)]
        self._mask = torch.cat(masks)
        for own, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            if own.is_initialized:  # a layer that shares another's keys holds none
                own.keys = torch.cat([_widen(x, width, dim=2) for x in (own.keys, theirs.keys)])
                own.values = torch.cat(
                    [_widen(x, width, dim=2) for x in (own.values, theirs.values)]
                )
        self.rows += other.rows
        self._alone = False
        self._chains = self._chains or other._chains

    @torch.inference_mode()
    def advance(self) -> None:
        """Add at least one token to every answer that is not done, in one pass."""
        middle = None if self.passes else self._middle
        if self.passes:
            self._drop_done()
            drafts = self._propose()
            inputs, mask = self._continue(drafts)
        else:
            drafts = [Draft()] * len(self.rows)
            inputs, mask = _pad_left([row.inputs for row in self.rows])
            self._mask = mask[:, :0]
        width = 1 + max(map(len, drafts))
        self._mask = torch.cat([self._mask, mask], dim=1)
        places = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        inner: list[Tensor] = []
        with (
            self.base.adapter(self.adapter),
            self.base.captured_states() as states,
            nullcontext(inner) if middle is None else self.base.captured_states(middle) as inner,
        ):
            logits = self.base.model(
                inputs_embeds=inputs,
                attention_mask=None if self._alone else self._mask,
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=width,
            ).logits
        self.passes += 1
        for read in inner:
            for row, own in zip(self.rows, read, strict=True):
                if row.on_read is not None:
                    row.on_read(own[-len(row.inputs) :])
        kept = [
            row.verify(logits[number], draft, self._ends)
            for number, (row, draft) in enumerate(zip(self.rows, drafts, strict=True))
        ]
        self.guessed = [
            (len(draft), own - 1)
            for draft, own in zip(drafts, kept, strict=True)
            if draft and draft.is_guess
        ]
        if self._chains is not None:
            for number, (row, own) in enumerate(zip(self.rows, kept, strict=True)):
                row.state = states[0][number, own - 1]
        self._forget(kept, width)

    def _drop_done(self) -> None:
        """Take answers that are whole out of the batch."""
        going = [number for number, row in enumerate(self.rows) if not row.done]
        if len(going) < len(self.rows):
            chosen = torch.tensor(going, device=self._mask.device)
            self.rows = [self.rows[number] for number in going]
            self._cache.batch_select_indices(chosen)
            self._mask = self._mask[chosen]
            self._compact()

    def _compact(self) -> None:
        """Take positions that no row sees any more out of the cache."""
        seen = self._mask.any(0)
        if not self._drafts or not self.rows or bool(seen.all()):
            return
        kept = seen.nonzero()[:, 0]
        self._mask = self._mask[:, kept]
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys.index_select(2, kept)
                layer.values = layer.values.index_select(2, kept)

    def _propose(self) -> list[Draft]:
        """A draft for each row, as long as it pays."""
        if not self._drafts:
            return [Draft()] * len(self.rows)
        drafts = [row.draft() for row in self.rows]
        self._guess(drafts)
        weighed = [row.trust.weigh(own) for row, own in zip(self.rows, drafts, strict=True)]
        width = choose_width(weighed)
        return [draft.cut(width - 1) for draft in drafts]

    def _guess(self, drafts: list[Draft]) -> None:
        """Put guesses in place of drafts that are empty, where they are wanted and may pay."""
        wanting = [
            number
            for number, (row, draft) in enumerate(zip(self.rows, drafts, strict=True))
            if row.guesses and not draft and row.room > 0 and row.trust.value > _LEAST_TRUST
        ]
        rows = [self.rows[number] for number in wanting]
        states = [row.state for row in rows if row.state is not None]
        if self._chains is None or not states or len(states) < len(rows):
            return
        guessed = self._chains.draft(
            torch.stack(states),
            [row.tokens[-1] for row in rows],
            [row.room for row in rows],
            [row.trust.value for row in rows],
        )
        for number, draft in zip(wanting, guessed, strict=True):
            drafts[number] = draft

    def _continue(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """Embeddings of the last token of each row and its draft, and their mask."""
        width = 1 + max(map(len, drafts))
        ids = torch.zeros(len(drafts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, (row, draft) in enumerate(zip(self.rows, drafts, strict=True)):
            ids[number, : 1 + len(draft)] = torch.tensor([row.tokens[-1], *draft.tokens])
            mask[number, : 1 + len(draft)] = 1
        return self.base.embed(ids.to(self.base.device)), mask.to(self.base.device)

    def _forget(self, kept: Sequence[int], width: int) -> None:
        """Take back what was read of drafts that were wrong.

        Args:
            kept: of the `width` positions read last, how many each row keeps.
            width: those positions; of the prompt, which is kept, only the last counts.
        """
        if width == 1:
            return
        end = self._mask.shape[1]
        for number, own in enumerate(kept):
            self._mask[number, end - width + own :] = 0
        if extra := width - max(kept):
            self._cache.crop(-extra)
            self._mask = self._mask[:, : end - extra]


def _widen(tensor: Tensor, width: int, dim: int) -> Tensor:
    """`tensor` with zeros before it along one dimension, up to a width."""
    missing = width - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def _pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts `[positions, hidden]` of several lengths as one batch, and its mask."""
    longest = max(map(len, prompts))
    inputs = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=inputs.device)
    for row, prompt in enumerate(prompts):
        inputs[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return inputs, mask
