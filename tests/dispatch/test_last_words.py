import re
from pathlib import Path

import pytest

from qb_cluster.dispatch.last_words import Whereabouts, crash_file, fault, tell
from qb_cluster.dispatch.ray_worker import said
from qb_cluster.errors import BoardCrashedError

REPORT = """\
Fatal Python error: Segmentation fault

Thread 0x00007f0000000001 (most recent call first):
  File "/somewhere/threading.py", line 10 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/somewhere/kernel.py", line 12 in convolve
  File "/somewhere/model.py", line 34 in forward
  File "/somewhere/main.py", line 56 in main
"""


@pytest.fixture
def log(tmp_path):
    return tmp_path / "worker-3.17.log"


def story_of(log):
    return tell(Whereabouts("worker-3", "board-1", "abc" * 20, 123, log), "it died")


def test_a_fault_is_condensed_to_what_and_where(log):
    crash_file(log).write_text(REPORT, encoding="utf-8")
    assert fault(log) == (
        "Fatal Python error: Segmentation fault at kernel.py:12 in convolve, "
        "called from model.py:34 in forward"
    )


class Wrapped(Exception):  # noqa: N818  as Ray wraps what is raised in a worker
    def __init__(self, cause):
        super().__init__("ray::WorkerProcess.run()\n  File ...\nBoardLostError: the first line")
        self.cause = cause


def test_an_error_of_ours_says_all_its_lines_and_another_its_last():
    ours = Wrapped(BoardCrashedError("the agent died. Its last words: one\n  two\n\n three"))
    assert said(ours) == "the agent died. Its last words: one | two | three"
    assert said(Wrapped(ValueError("a\nb"))) == "the first line"


def test_without_a_report_there_is_no_fault(log):
    assert fault(log) == ""
    crash_file(log).write_text("", encoding="utf-8")
    assert fault(log) == ""


def test_a_story_says_when_where_what_and_the_last_ten_lines(log):
    log.write_text("\n".join(f"line {n}" for n in range(25)), encoding="utf-8")
    head, *lines = story_of(log).splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, worker-3 on host 'board-1' "
        r"\(node abcabcabcabc, process 123\): it died",
        head,
    )
    assert lines == [f"line {n}" for n in range(15, 25)]


def test_a_long_log_is_read_from_its_end(log):
    log.write_text("x" * 1_000_000 + "\n" + "y" * 1_000 + "\nlast\n", encoding="utf-8")
    lines = story_of(log).splitlines()
    assert lines[-1] == "last"
    assert max(map(len, lines)) <= 300


def test_bytes_that_are_no_text_do_not_matter(log):
    log.write_bytes(b"\xff\xfe broken\nlast\n")
    assert story_of(log).endswith("broken\nlast")


def test_what_ray_prints_of_a_signal_is_left_out(log):
    log.write_text(
        ":actor_name:WorkerProcess\n"
        "about to crash\n"
        "*** SIGSEGV received at time=1795573251 on cpu 0 ***\n"
        "PC: @     0x7f6c33d85ad8  (unknown)  (unknown)\n"
        "    @     0x7f6c33c5a050  (unknown)  (unknown)\n"
        "[2026-11-25 02:20:51,265 E 27869 27869] logging.cc:474: *** SIGSEGV received at time=1\n"
        "[2026-11-25 02:20:51,265 E 27869 27869] logging.cc:474: PC: @     0x7f6  (unknown)\n"
        "[2026-11-25 02:20:51,265 E 27869 27869] logging.cc:474:     @     0x7f6  (unknown)\n",
        encoding="utf-8",
    )
    assert story_of(log).splitlines()[1:] == ["about to crash"]


def test_a_log_on_another_machine_is_named():
    log = Path("/only/there/worker-3.17.log")
    assert story_of(log).endswith(f"its log is on host 'board-1': {log}")
