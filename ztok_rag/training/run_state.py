"""The folder of a run: its settings, its log, and the state from which it resumes exactly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import CheckpointError

_STATE = "state.safetensors"
_OPTIMIZER = ("step", "exp_avg", "exp_avg_sq")


def claim_folder(output: Path, described: Mapping[str, Any]) -> None:
    """Make sure that a folder holds no run with other settings, and note these.

    Args:
        output: folder of the run; it is made.
        described: all that a run to go on with must have in common with this one, as JSON has it.

    Raises:
        CheckpointError: it holds another run, or its settings are damaged.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / "settings.json"
    if not path.exists():
        write_atomic(path, (json.dumps(described, indent=2) + "\n").encode())
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); give another output folder."
        ) from error
    check_same(output, known, described)


def check_same(output: Path, known: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if the run in a folder has other settings than those described."""
    if known != described:
        changed = sorted(key for key in described if described[key] != known.get(key))
        raise CheckpointError(
            f"{output} holds a run with other settings ({', '.join(changed)}); repeat its settings "
            "to resume it, or give another output folder."
        )


def open_log(path: Path, steps: int) -> Any:
    """A log of a line per step, without the lines of steps that were lost with a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    write_atomic(path, "".join(lines[:steps]).encode())
    return path.open("a", encoding="utf-8")


def save_state(
    output: Path,
    parameters: Iterable[tuple[str, nn.Parameter]],
    optimizer: Optimizer,
    step: int,
    seconds: float,
) -> None:
    """Write the state from which `load_state` goes on; it is whole or not there.

    Args:
        output: folder of the run.
        parameters: names and weights.
        optimizer: AdamW of these.
        step: steps that were taken.
        seconds: that they took.
    """
    tensors = {"step": torch.tensor([step]), "seconds": torch.tensor([seconds]).double()}
    for name, parameter in parameters:
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    temporary = output / "state.tmp"
    save_file({name: t.cpu().contiguous().clone() for name, t in tensors.items()}, temporary)
    os.replace(temporary, output / _STATE)


@torch.no_grad()
def load_state(
    output: Path, parameters: Iterable[tuple[str, nn.Parameter]], optimizer: Optimizer
) -> tuple[int, float]:
    """Load the state in a folder, if there is one.

    Returns:
        Steps that were taken, and seconds that they took.

    Raises:
        CheckpointError: it is damaged.
    """
    path = output / _STATE
    if not path.exists():
        return 0, 0.0
    try:
        tensors = load_file(path)
        for name, parameter in parameters:
            parameter.copy_(tensors[f"weight.{name}"])
            optimizer.state[parameter] = {
                key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else parameter.device)
                for key in _OPTIMIZER
                if f"{key}.{name}" in tensors
            }
        return int(tensors["step"]), float(tensors["seconds"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"the state in {output} is damaged ({error}); give another output folder."
        ) from error
