"""Write `results.json`: the rows, and the command, commit and machine that made them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.evaluation.rows import Row
from ztok_rag.files import repair


def machine_info(device: str | None = None) -> dict[str, Any]:
    """The machine and the package versions on which timings and scores depend."""
    names = ("torch", "transformers", "peft")
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": device,
        "dtype": os.environ.get("ZTOK_DTYPE") or "default",
        "python": platform.python_version(),
        **{name: _version(name) for name in names},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+` if files differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_results(
    folder: Path,
    rows: Sequence[Row],
    *,
    seed: int,
    checkpoint: str,
    device: str | None = None,
    command: Sequence[str] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Write `results.json` into `folder` atomically, and return its content.

    Args:
        command: `None` is the command of this process.
        extra: further fields beside `rows`.
    """
    results = {
        "command": shlex.join(command or _own_command()),
        "commit": git_commit(),
        "machine": machine_info(device),
        "seed": seed,
        "checkpoint": checkpoint,
        **extra,
        "rows": [row.to_dict() for row in rows],
    }
    write_atomic(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    return results


def _own_command() -> list[str]:
    """The arguments of this process. A program with an absolute path is given by name only."""
    program, *arguments = map(repair, sys.argv)
    if Path(program).name == "__main__.py":  # of `python -m ztok_rag.cli`
        program = "ztok"
    dtype = os.environ.get("ZTOK_DTYPE")
    setting = [f"ZTOK_DTYPE={dtype}"] if dtype else []
    name = Path(program).name if Path(program).is_absolute() else program
    return [*setting, name, *arguments]
