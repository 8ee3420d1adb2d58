"""Download LongBench (arXiv 2308.14508) from the Hugging Face hub."""

from __future__ import annotations

import logging
import shutil
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from tasks.kinds import LONGBENCH
from tasks.records import CONFIG
from ztok_rag.codec.base import cache_dir
from ztok_rag.errors import DataError

_REPOSITORY = "THUDM/LongBench"

_CONFIG_URL = "https://raw.githubusercontent.com/THUDM/LongBench/main/LongBench/config/"


def download() -> Path:
    """Download LongBench's files into the cache folder, unless they are there. Returns the folder.

    Raises:
        DataError: a file cannot be downloaded.
    """
    folder = cache_dir() / "longbench"
    if all((folder / name).exists() for name in (*CONFIG, *(f"{t}.jsonl" for t in LONGBENCH))):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from huggingface_hub import hf_hub_download

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        archive = hf_hub_download(_REPOSITORY, "data.zip", repo_type="dataset")
        with zipfile.ZipFile(archive) as files:
            for task in LONGBENCH:
                with files.open(f"data/{task}.jsonl") as source:
                    _save(source, folder / f"{task}.jsonl")
        for name in CONFIG:
            with urllib.request.urlopen(_CONFIG_URL + name, timeout=60) as source:
                _save(source, folder / name)
    except Exception as error:  # each layer below raises its own errors without a network
        cause = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DataError(
            f"cannot download LongBench ({cause}); give a folder of its files by --data DIR."
        ) from error
    return folder


def _save(source: Any, path: Path) -> None:
    """Copy a stream to `path`, atomically."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        shutil.copyfileobj(source, file)
    temporary.replace(path)
