"""What came of one kind of fault."""

from __future__ import annotations

from dataclasses import dataclass, field

from breakage.world import Seen


@dataclass
class Outcome:
    """Counts of one kind of fault.

    Attributes:
        kind: what was done.
        allowed: what may be there afterwards, in words.
        faults: how often it was done.
        checks: answers compared with the right ones.
        wrong: those that differed, in words.
        refused: times that an error or a warning of this package named what was wrong.
        lost: most chunks, of one fault, whose Z-tokens were lost and made again.
    """

    kind: str
    allowed: str
    faults: int = 0
    checks: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    lost: int = 0

    def take(self, seen: Seen) -> None:
        """Add what a check has found."""
        self.checks += seen.checks
        self.wrong += seen.wrong

    def lose(self, chunks: int) -> None:
        """Note the chunks that one fault has lost."""
        self.lost = max(self.lost, chunks)

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.faults} times, {self.checks} answers, {len(self.wrong)} wrong, "
            f"{self.refused} refused, at most {self.lost} lost"
        )
