"""The reader as an ordinary Hugging Face checkpoint, its adapter merged into the base's weights.

Any engine that takes input embeddings can then read Z-tokens: `ZReader.to_embeds` gives those of a
prompt. The engine does not draw answers towards what the Z-tokens hold, and lets them go in
circles; `ZReader` does so with `copy=False` and `no_repeat_ngram_size=0`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ztok_rag.codec import internals
from ztok_rag.codec.base import quiet_transformers
from ztok_rag.codec.model import READ, ZModel
from ztok_rag.errors import ZtokError
from ztok_rag.files import show


def check_new(folder: Path) -> None:
    """Make sure that nothing is in a folder.

    Raises:
        ZtokError: something is.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZtokError(f"{show(folder)} is there already; name a new folder.")


def export_reader(model: ZModel, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the reader and its tokenizer; `model` stays as it is.

    The adapter is added to the weights in float32. The folder is whole or not there.

    Args:
        model: of the reader.
        folder: new or empty.
        dtype: of the weights; `None` is that of the base.

    Raises:
        ZtokError: something is in the folder.
    """
    folder = Path(folder)
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    base = model.base
    dtype = dtype or base.dtype
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        with quiet_transformers():
            # The base's own module has layers of the adapter in it; a fresh one has not.
            merged = type(base.model)(base.model.config)
            merged.load_state_dict({k: v.to(dtype) for k, v in merged_state(model).items()})
            merged.to(dtype).save_pretrained(temporary)
            if base.model.generation_config is not None:
                base.model.generation_config.save_pretrained(temporary)
            base.tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@torch.no_grad()
def merged_state(model: ZModel) -> dict[str, Tensor]:
    """The base's weights by name, on the CPU, with the adapter added in float32."""
    base = model.base
    changes = internals.adapter_changes(base.model, READ)
    with base.lock:
        found: dict[str, Tensor] = {}
        for name, weight in base.model.state_dict().items():
            if "lora_" in name:
                continue
            own = name.replace(".base_layer.", ".")
            layer, _, kind = own.rpartition(".")
            value = weight.detach().to("cpu", torch.float32 if layer in changes else weight.dtype)
            if kind == "weight" and layer in changes:
                value = value + changes[layer].to("cpu", torch.float32)
            found[own] = value
    return found
