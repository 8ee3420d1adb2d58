"""Settings of a checkpoint, saved beside its weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ztok_rag.errors import CheckpointError

FORMAT = 3
"""Version of the checkpoint's layout; another is refused."""


@dataclass(frozen=True)
class ZConfig:
    """What a checkpoint is, apart from its weights.

    Attributes:
        base: name of the base LLM that the checkpoint was trained on.
        base_fingerprint: of that base (`BaseLM.fingerprint`).
        rank: of the reader's LoRA adapter.
        slots: most tokens that a Z-token holds (`K`).
        packer_width: hidden units of the packer.
        embedding_scale: standard deviation of the base's input embeddings.
        pointer_layer: after how many of the reader's layers the pointer looks; 0 without one.
        pointer_width: of the pointer's queries and keys.
        window: source tokens that the base reads at once to weigh them.
        selector_width: hidden units of the network that chooses by the question; 0 without one.
        format: version of the layout.
    """

    base: str
    base_fingerprint: str
    rank: int = 64
    slots: int = 16
    packer_width: int = 2048
    embedding_scale: float = 0.12
    pointer_layer: int = 20
    pointer_width: int = 128
    window: int = 511
    selector_width: int = 96
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        """Write `config.json` into `folder`."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ZConfig:
        """Read `config.json` from `folder`.

        Raises:
            CheckpointError: the file is missing or malformed, or of another format.
        """
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(
                f"{folder} is not a ztok checkpoint (no readable config.json); "
                "give a folder that `ztok train` wrote."
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{folder}/config.json is malformed ({error}).") from error
        version = fields.get("format", 2) if isinstance(fields, dict) else None
        if version != FORMAT:
            raise CheckpointError(
                f"the checkpoint {folder} has format {version}, and this version of ztok-rag reads "
                f"format {FORMAT}; train one with `ztok train`, use the one that is shipped, and "
                "compress again with `ztok index --rebuild`."
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise CheckpointError(f"{folder}/config.json is malformed ({error}).") from error
