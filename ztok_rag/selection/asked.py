"""What a prompt asks."""

from __future__ import annotations

import regex

# "Question: …", "Query: …", or LlamaIndex's "The original query is as follows: …".
_LABELLED = regex.compile(
    r"^.*?\b(?:question|query)\b[^:?\n]{0,20}:[ \t]*(\S.*)$", regex.I | regex.M
)
# A line that ends with a question mark of any script.
_ASKING = regex.compile(r"^(.*[?\uff1f\u061f\u037e])\s*$", regex.M)

# What somebody says in a dialogue: "Anna: Are you coming?"
_SAID = regex.compile(r"^(?!Q\b)\w[^:\n]{0,30}:[ \t]+\S.*$", regex.M)


def find_question(before: str, after: str) -> str | None:
    """The question of a prompt, by its labels or its question mark.

    Args:
        before: the prompt's text before its context.
        after: and after it, which is searched first.

    Returns:
        The question; `None` where none is found, as in a prompt that asks for a summary.
    """
    for text in (after, before):
        if labelled := _LABELLED.findall(text):
            return str(labelled[-1]).strip()
        asking = [m for m in _ASKING.finditer(text) if not _has_reply(text, m)]
        if asking:
            return str(asking[-1].group(1)).strip()
    return None


def _has_reply(text: str, asking: regex.Match[str]) -> bool:
    """Whether a line that asks is of a dialogue that goes on after it."""
    is_said = _SAID.match(text, asking.start(1)) is not None
    return is_said and _SAID.search(text, asking.end()) is not None
