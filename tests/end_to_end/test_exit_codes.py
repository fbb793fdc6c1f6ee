"""Exit codes: each is seen from a real process, and the page that lists them is complete."""

import re
import signal
import sys
from pathlib import Path

import pytest
from ssh_server import wait_until

from qb_cluster.exit_codes import ExitCode

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"
SPEC = """
sweep: trial
models: [stranger:centroids]
datasets: [stranger:blobs]
schemes: [weight_only]
bits: [w8, w4]
backends: [stranger:NumpyBackend]
measure: {latency: false}
"""
BUG = """\
import qb_cluster.spec

def load_spec(path):
    raise RuntimeError("this is a bug")

qb_cluster.spec.load_spec = load_spec
"""


def run(place, text=SPEC, **how):
    return place.qb("run", place.spec(text), "--pool", "inline", **how)


def done(place):
    return run(place)


def unexpected(place):
    (place.folder / "sitecustomize.py").write_text(BUG)
    return run(place, env={"PYTHONPATH": str(place.folder)})


def cannot_run(place):
    return run(place, SPEC.replace("w8", "w99"))


def some_failed(place):
    return run(place, SPEC.replace("centroids", "raises"))


def interrupted(place):
    command = "run", place.spec(SPEC), "--pool", "inline"
    process = place.popen(*command, env={"STRANGER_WAITS_FOR": str(place.folder / "go")})
    wait_until(place.log, 60)
    process.send_signal(signal.SIGINT)
    (place.folder / "go").touch()
    process.wait(60)
    return process


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (ExitCode.DONE, done),
        (ExitCode.UNEXPECTED, unexpected),
        (ExitCode.CANNOT_RUN, cannot_run),
        (ExitCode.SOME_FAILED, some_failed),
        (ExitCode.INTERRUPTED, interrupted),
    ],
)
def test_each_exit_code_is_what_qb_run_ends_with(place, code, how):
    ended = how(place)
    assert ended.returncode == code, ended.stderr


def test_the_page_lists_the_exit_codes_there_are_and_no_others():
    listed = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert list(dict.fromkeys(map(int, listed))) == sorted(ExitCode)


def test_only_a_bug_prints_a_traceback(place):
    assert "this is a bug" in unexpected(place).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-command",),
        ("run",),
        ("run", "sweep.yaml", "--pool", "nothing"),
        ("run", "sweep.yaml", "--ship-code"),
        ("run", "gone.yaml"),
        ("run", "."),
        ("run", "sweep.yaml", "--address", "a:b:c"),
        ("plan", "sweep.yaml", "--nothing"),
        ("status", "gone"),
        ("report", "gone"),
        ("propose", "gone", "--model", "m"),
        ("backends", "gone"),
        ("backends", "stranger:NumpyBackend", "--check"),
        ("selfcheck", "gone"),
        ("devices", "--address", "a:b:c"),
    ],
)
def test_a_mistake_of_the_user_is_told_without_a_traceback(place, arguments):
    place.spec(SPEC)
    told = place.qb(*arguments)
    assert told.returncode == ExitCode.CANNOT_RUN
    assert "Traceback" not in told.stderr
    assert told.stderr


def test_a_folder_that_is_gone_is_told_without_a_traceback(place):
    qb = place.command()[0]
    told = place.shell(f"mkdir gone; cd gone; rmdir ../gone; '{qb}' schema")
    assert told.returncode == ExitCode.CANNOT_RUN
    assert told.stderr.startswith("error: the current folder does not exist")


def test_a_reader_that_stops_early_is_no_error(place):
    place.spec(SPEC.replace("[w8, w4]", str([f"w{n}" for n in range(2, 17)]).replace("'", "")))
    run(place, SPEC)
    qb = place.command()[0]
    for command in ("plan sweep.yaml", "schema", "status runs/trial", "report runs/trial"):
        told = place.shell(f"set -o pipefail; '{qb}' {command} | true")
        assert told.returncode == ExitCode.DONE, command
        assert "pipe" not in told.stderr.lower(), told.stderr


def test_a_run_goes_on_when_nobody_reads_its_messages_any_more(place):
    qb = place.command()[0]
    place.spec(SPEC)
    told = place.shell(f"set -o pipefail; '{qb}' run sweep.yaml --pool inline 2>&1 | true")
    assert told.returncode == ExitCode.DONE
    assert len(place.results("runs/trial")) == 3


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_is_no_error(place, closed):
    qb = place.command()[0]
    place.spec(SPEC)
    assert place.shell(f"'{qb}' plan sweep.yaml {closed}").returncode == ExitCode.DONE


@pytest.mark.parametrize("command", ["plan", "run", "status", "report"])
def test_a_terminal_of_ascii_alone_shows_question_marks(place, command):
    where = "sweep.yaml" if command in {"plan", "run"} else "runs/trial"
    run(place)
    more = ("--pool", "inline", "--rerun", "*") if command == "run" else ()
    told = place.qb(command, where, *more, env={"PYTHONIOENCODING": "ascii"})
    assert told.returncode == ExitCode.DONE, told.stderr
    assert (told.stdout + told.stderr).isascii()


def test_no_colour_where_none_is_wanted(place):
    run(place)
    for env in ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}):
        told = place.qb("status", "runs/trial", env=env)
        assert "\x1b[3" not in told.stdout


def test_python_m_is_the_command(place):
    place.spec(SPEC)
    python = sys.executable
    told = place.shell(f"'{python}' -m qb_cluster plan sweep.yaml --json")
    assert told.stdout == place.qb("plan", "sweep.yaml", "--json").stdout
    assert place.shell(f"'{python}' -m qb_cluster --help").stdout.startswith("Usage: qb [")
    assert place.shell(f"'{python}' -m qb_cluster plan gone.yaml").returncode == ExitCode.CANNOT_RUN
