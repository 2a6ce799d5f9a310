"""Streams whose readers leave, descriptors that are closed, and signals before anything is measured."""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from problems import terminal
from problems.terminal import Lasting, TerminatedError, interruptible

FILE = Path(terminal.__file__)


def piped():
    """A pipe that nobody reads, with a small buffer."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def test_what_nobody_reads_is_dropped_and_the_rest_of_a_program_goes_on():
    stream = piped()
    lasting = Lasting(stream)
    for _ in range(3):
        assert lasting.write("a line\n") == 7
        lasting.flush()
    stream.write("the pipe itself is the null device now\n")
    stream.close()


def test_a_stream_that_was_closed_is_the_null_device():
    lasting = Lasting(None)
    print("words", file=lasting, flush=True)
    assert lasting.encoding == "utf-8"
    lasting.close()


def test_a_stream_that_is_read_is_what_it_was(capsys):
    print("words", file=Lasting(sys.stdout), flush=True)
    assert capsys.readouterr().out == "words\n"


@pytest.mark.parametrize(
    ("argv", "whole", "typed"),
    [
        (["-m"], ["python", "-m", "analysis.gte", "--nfe", "5"], True),
        (["-m"], ["python", "-W", "error", "-m", "problems.images.train"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["-m"], ["python", "-m", "analysis_of_mine"], False),
        (["/bin/genie-bench", "gte"], ["python", "/bin/genie-bench", "gte"], True),
        (
            ["/bin/genie-bench", "gte"],
            ["python", "-c", "from multiprocessing.spawn import spawn_main"],
            False,
        ),
        (["mine.py"], ["python", "mine.py"], False),
        ([""], ["python"], False),
    ],
)
def test_a_process_is_changed_where_a_command_was_typed(argv, whole, typed):
    assert terminal._typed(argv, whole) is typed


def test_this_process_has_other_handlers():
    assert signal.getsignal(signal.SIGTERM) is not terminal._left


CHILD = f"""
import os, runpy, sys, time
module = runpy.run_path({str(FILE)!r})
os.close(0), os.close(2)
sys.argv, sys.orig_argv, sys.stderr = ["-m"], ["python", "-m", "analysis.gte"], None
module["begin"]()
assert os.open({str(FILE)!r}, os.O_RDONLY) > 2
print("to nobody", file=sys.stderr)
os.dup2(1, 2)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_modules_are_imported_gets_one_sentence(number, code):
    """Without torch, whose import takes long: the module alone, in a process with two closed descriptors."""
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert child.stdout.read() == "stopped before anything was measured\n"
    assert child.wait() == code
    child.stdout.close()


def struck(number):
    with interruptible():
        os.kill(os.getpid(), number)
        time.sleep(5)


def test_signals_raise_within_the_block_and_no_longer_after_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError):
        struck(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        struck(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_are_left_alone():
    said = []

    def run():
        with interruptible():
            said.append("done")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert said == ["done"]


def test_it_needs_nothing_that_takes_time():
    names = runpy.run_path(str(FILE))
    assert "torch" not in names
    assert not any(
        line.startswith(("import torch", "from problems")) for line in FILE.read_text().splitlines()
    )
