"""Coverage-guided fuzzing of what is parsed: handles, files, store entries, records and requests.

    python benchmarks/fuzz.py --runs 1000000 --output DIR

Inputs are what atheris (extra `dev-fuzz`) makes of the seeds and of what reached new code. Where
bytes bear a checksum or a signature, it is made right, so that the parser behind it is reached.
Whatever is not a `ZtokError` is a failure, and so is something that is read but does not come out
the same when it is written and read again. Of a body that the server gets, it is a status of 500 or
more, or an error that is not in OpenAI's form.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import Parser, count, positive, run_script
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, write_results

HERE = Path(__file__).resolve().parent
NAMES = (
    "files of codes", "files of codes, unsealed", "signed handles", "prompts", "store entries",
    "sentence entries", "lossless files", "records", "settings",
    "HTTP bodies",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Fuzz every target in a process of its own, and write the counts."""
    options = parse(arguments)
    if importlib.util.find_spec("atheris") is None:
        raise DataError("fuzzing needs the package atheris; run `pip install ztok-rag[dev-fuzz]`.")
    runs = -(-options.runs // len(options.targets))
    rows: list[Row] = []
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    for name in options.targets:
        command = [sys.executable, "-m", "breakage.targets", name, str(runs), str(options.seed)]
        started = time.perf_counter()
        with tempfile.TemporaryFile() as log:
            subprocess.run(command, stdout=log, stderr=log, check=False, env=environment, cwd=HERE)
            log.seek(0)
            told = log.read().decode("utf-8", "replace")
        seconds = time.perf_counter() - started
        failed = f"Done {runs} in" not in told or "ERROR: libFuzzer" in told
        values = {"inputs": float(runs), "failures": float(failed), "seconds": round(seconds, 1)}
        rows += [
            Row("fuzz", name, "atheris", None, 0, metric, value, (value, value), runs)
            for metric, value in values.items()
        ]
        print(f"{name}: {runs} inputs, {'FAILED' if failed else 'no failure'}, {seconds:.0f} s")
        if failed:
            print(told[-3000:])
    output = options.output or Path("results") / "fuzz"
    write_results(
        output, rows, seed=options.seed, checkpoint="default", device="cpu", benchmark="fuzz",
        note="Checksums and signatures of inputs are made right, so that parsers are reached.",
    )  # fmt: skip
    if any(row.metric == "failures" and row.score for row in rows):
        raise DataError("an input failed; its file is named above.")
    print(f"Written: {output}/results.json")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description="Fuzz the parsers.")
    parser.add_argument(
        "--runs", type=positive, default=1_000_000, metavar="N",
        help="inputs, of all targets together (default: 1000000)",
    )  # fmt: skip
    parser.add_argument(
        "--targets", nargs="+", choices=NAMES, default=NAMES, metavar="NAME",
        help=f"of: {'; '.join(NAMES)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    parser.add_argument("--seed", type=count, default=0, help="default: 0")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
