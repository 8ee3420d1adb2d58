"""Processes that are forked from a running one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

KILLED_WHILE_IT_DRAWS = """
import os, signal
from tqdm.auto import tqdm
import ztok_rag.forks

tqdm([1], disable=True)
pid = os.fork()
if not pid:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
print(list(tqdm([1], disable=True)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_process_that_is_killed_while_it_draws_a_bar_stops_no_other() -> None:
    run = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_DRAWS],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == "[1]\n"
