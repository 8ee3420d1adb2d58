"""Settings of a checkpoint, saved beside its weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ztok_rag.errors import CheckpointError


@dataclass(frozen=True)
class ZConfig:
    """What a checkpoint is, apart from its weights.

    Attributes:
        base: name of the base LLM the checkpoint was trained on.
        base_fingerprint: of that base (`BaseLM.fingerprint`).
        compressor_layers: how many of the base's first layers the compressor runs.
        rank: of the LoRA adapters.
        anchors: codes per Z-token that name the span's most informative source tokens.
        residual_depth: codes per Z-token of the residual quantizer.
        residual_levels: levels of each dimension of one residual code; at most 65,535 codes.
        inject_layers: layers of the reader at whose inputs the residual codes act; none beyond
            `compressor_layers`.
        window: source tokens compressed in one window; longer texts are split.
        max_span: most source tokens one Z-token may stand for.
        elasticity: how far, as a share, the Z-tokens of one window may stray from
            `tokens / rate` to follow its content.
        surprisal_power: of a token's predicted surprisal in what the spans share out, beside how
            likely it is to be asked for.
        mean_information: mean predicted surprisal, in nats per token, of the training text.
        adapters: LoRA adapters in the checkpoint.
    """

    base: str
    base_fingerprint: str
    compressor_layers: int
    rank: int = 32
    anchors: int = 1
    residual_depth: int = 2
    residual_levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4, 4, 3)
    inject_layers: tuple[int, ...] = (0,)
    window: int = 256
    max_span: int = 64
    elasticity: float = 0.08
    surprisal_power: float = 0.5
    mean_information: float = 1.0
    adapters: tuple[str, ...] = ("compress", "read")

    @property
    def depth(self) -> int:
        """Codes per Z-token."""
        return self.anchors + self.residual_depth

    def save(self, folder: Path) -> None:
        """Write `config.json` into `folder`."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ZConfig:
        """Read `config.json` from `folder`.

        Raises:
            CheckpointError: the file is missing or malformed.
        """
        try:
            fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            for name in ("residual_levels", "inject_layers", "adapters"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except OSError as error:
            raise CheckpointError(
                f"{folder} is not a ztok checkpoint (no readable config.json); "
                "give a folder that `ztok train` wrote."
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder}/config.json is malformed ({error}).") from error
