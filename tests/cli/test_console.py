"""Streams, signals, errors and exit statuses of commands, without a model."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ztok
from typer.testing import CliRunner

from ztok_rag import cli
from ztok_rag.cli import codes, console
from ztok_rag.cli.console import describe, prepare_streams, run_program, say, shows_bars
from ztok_rag.errors import DataError

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs signals and pipes of POSIX")


def run(*arguments: str | bytes, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command with streams of one's own."""
    settings = {"capture_output": True, "timeout": 100, "check": False, **options}
    environment = {**os.environ, **settings.pop("env", {})}  # type: ignore[dict-item]
    command = [sys.executable, "-m", "ztok_rag.cli", *arguments]
    return subprocess.run(command, env=environment, **settings)  # type: ignore[call-overload]


def ended(main: Callable[[], object]) -> int:
    """The exit status of a program."""
    with pytest.raises(SystemExit) as end:
        run_program(main, "program")
    return int(str(end.value.code))


@pytest.fixture(autouse=True)
def signals_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_end_by_exception", lambda name: None)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_a_stream_cannot_show_is_replaced(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(held, encoding, "strict"))
    prepare_streams()
    print("stdout → \udcff", flush=True)
    say("a\u2192\ud835\nb")
    lines = held.getvalue().decode(encoding).splitlines()
    assert len(lines) == 2 and lines[0].startswith("stdout") and lines[1].startswith("ztok: a")


def test_streams_may_be_missing_or_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed, io.StringIO()):
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, stream)
        assert ended(lambda: print("to nobody")) == 0
        assert ended(lambda: say("to nobody")) == 0
        assert not shows_bars()


def test_every_error_has_its_status_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> Callable[[], object]:
        def body() -> None:
            raise error

        return body

    for error, status, line in (
        (DataError("two\nlines \udcff."), 1, "program: two\ufffdlines \ufffd.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "program: No space left on device; make room on the disk, or write elsewhere.\n",
        ),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", b"caf\xff"),
            1,
            "program: caf\ufffd: Is a directory; name a file.\n",
        ),
        (KeyboardInterrupt(), 130, "program: stopped.\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (SystemExit(7), 7, ""),
    ):
        assert ended(fail(error)) == status
        assert capsys.readouterr().err == line
    assert describe(OSError("odd")) == "odd."


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(codes, "read_bytes", interrupted)
    for command in ("compress", "decompress", "view"):
        done = CliRunner().invoke(cli.app, [command, "in", "-o", "out"])
        assert (done.exit_code, done.output) == (130, "ztok: stopped.\n")


@POSIX
@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(signal.SIGINT, 130, b"ztok: stopped.\n"), (signal.SIGTERM, 143, b"")],
)
def test_a_signal_ends_a_command(number: int, status: int, line: bytes, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ztok_rag.cli", "compress", "-", "-o", str(tmp_path / "out")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        process.stdin.write(b"a" * 2**18)  # more than a pipe holds, so that it reads now
        process.stdin.flush()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, b"", line)
    assert not list(tmp_path.iterdir())


@POSIX
@pytest.mark.parametrize(
    ("number", "status", "line"),
    [(signal.SIGINT, 130, b"program: stopped.\n"), (signal.SIGTERM, 143, b"")],
)
def test_a_signal_during_an_import_ends_the_program(
    number: int, status: int, line: bytes, tmp_path: Path
) -> None:
    module = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "slow.py").write_text(module, encoding="utf-8")
    script = "from ztok_rag.cli.console import run_program\n"
    script += "run_program(lambda: __import__('slow'), 'program')"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"importing\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, line)


@POSIX
def test_a_request_to_end_leaves_nothing_half_written(tmp_path: Path) -> None:
    script = """
import os, pathlib, sys, time
from ztok_rag.cli.console import run_program
from ztok_rag.codec import serialization
def replace(*_):
    print("writing", flush=True)
    time.sleep(60)
serialization.os.replace = replace
run_program(lambda: serialization.write_atomic(pathlib.Path(sys.argv[1]), b"data"), "program")
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        assert list(tmp_path.iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not list(tmp_path.iterdir())


@POSIX
def test_nobody_reads_the_output(tmp_path: Path) -> None:
    script = """
from ztok_rag.cli.console import run_program
run_program(lambda: [print("x" * 99) for _ in range(10**4)], "program")
"""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        os.close(reader)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, b"")


@POSIX
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-", ">/dev/full"])
def test_closed_and_full_streams(closed: str, tmp_path: Path) -> None:
    if "full" in closed and not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    script = f'"$0" -m ztok_rag.cli --help {closed}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], capture_output=True, timeout=60, check=False
    )
    full = b"ztok: No space left on device; make room on the disk, or write elsewhere.\n"
    expected = (1, full) if "full" in closed else (0, b"")
    assert (done.returncode, done.stderr) == expected


@POSIX
@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_odd_arguments_in_odd_locales_are_one_line(locale: dict[str, str]) -> None:
    name = "none/caf\u00e9\u2192".encode() + b"\xe9.txt"
    for arguments in (["compress", name, "-o", "x"], ["eval", name, "--output", "x"]):
        done = run(*arguments, env=locale)
        assert done.returncode == 1 and done.stderr.startswith(b"ztok: cannot read none/caf")
        assert done.stderr.count(b"\n") == 1
    assert run("train", "--help", env=locale).returncode == 0


@POSIX
@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_left_out_where_they_are_not_wanted(setting: dict[str, str]) -> None:
    import pty

    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-m", "ztok_rag.cli", "--help"],
        stdout=theirs,
        stderr=theirs,
        env={**clean, "TERM": "xterm", **setting},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0 and b"Commands" in shown
    assert b"\x1b[3" not in shown and b"\x1b[9" not in shown


def test_bars_need_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert shows_bars()
    monkeypatch.setenv("TERM", "dumb")
    assert not shows_bars()


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("Some words.", encoding="utf-8")
    done = ztok("compress", str(source), "-o", str(tmp_path / "out"), "--device", "abacus")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ztok: there is no device 'abacus'")
