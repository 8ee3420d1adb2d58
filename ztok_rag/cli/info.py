"""`ztok info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def info(
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
) -> None:
    """Show versions, device, checkpoint and cache folder."""
    import platform
    from importlib.metadata import version

    import torch

    from ztok_rag.codec.base import cache_dir, default_dtype, dtype_name
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.finder import ENCODER, FINDER_FILE
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT, codes_fingerprint, read_token_code

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = checkpoint or DEFAULT_CHECKPOINT
    config = ZConfig.load(folder)
    has_finder = (folder / FINDER_FILE).is_file()
    packages = ("ztok-rag", "torch", "transformers", "peft", "llama-index-core")
    rows = {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": f"{device} ({dtype_name(default_dtype(device))})",
        "cache": str(cache_dir()),
        "checkpoint": str(folder),
        "base LLM": f"{config.base} ({config.base_fingerprint})",
        "Z-token": f"up to {config.slots} tokens",
        "reader": f"LoRA adapter of rank {config.rank}",
        "pointer": f"after {config.pointer_layer} layers" if config.pointer_layer else "none",
        "finder": f"LoRA adapter on {ENCODER}" if has_finder else "none",
        "fingerprint": codes_fingerprint(config, read_token_code(folder)),
    }
    for name, value in rows.items():
        typer.echo(f"{name:18} {value}")
