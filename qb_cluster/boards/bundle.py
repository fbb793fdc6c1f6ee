"""The agent as one file, and the command that starts it on any Python."""

import importlib.util
import io
import zipfile
from pathlib import Path
from typing import Final

from qb_cluster.boards.agent.private_folder import AGENT, ALIVE, PREFIX

_OURS: Final = (
    "qb_cluster.boards.agent.main",
    "qb_cluster.boards.agent.arrays",
    "qb_cluster.boards.agent.artifact_files",
    "qb_cluster.boards.agent.board_lock",
    "qb_cluster.boards.agent.load",
    "qb_cluster.boards.agent.models",
    "qb_cluster.boards.agent.private_folder",
    "qb_cluster.boards.agent.refusal",
    "qb_cluster.boards.agent.wire",
    "qb_cluster.evaluation.timing",
    "qb_cluster.nodes.machine",
)
_START: Final = "from qb_cluster.boards.agent.main import main\n\nmain({!r})\n"

# Read by whatever Python the board has, so it must say what is wrong in Python 2.7 too. It takes
# the size of the agent, the board's folder and the seconds of silence, then the agent by stdin.
# The folder is locked before it has its name: a neighbour that cleans up can't mistake it.
_BOOTSTRAP: Final = f"""
import os, sys
if sys.version_info < (3, 8):
    sys.exit("quantbench: this is Python %d.%d.%d; the agent needs 3.8 or newer, so name another "
             "python for this board" % sys.version_info[:3])
import fcntl, shutil, tempfile
size, parent = int(sys.argv[1]), os.path.expanduser(sys.argv[2]) or tempfile.gettempdir()
folder = ""
try:
    folder = tempfile.mkdtemp(prefix=".{PREFIX}", dir=parent)
    lock = os.open(os.path.join(folder, "{ALIVE}"), os.O_WRONLY | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)
    named = os.path.join(os.path.dirname(folder), os.path.basename(folder)[1:])
    os.rename(folder, named)
    folder, agent = named, os.path.join(named, "{AGENT}")
    with open(agent, "wb") as file:
        while size:
            chunk = os.read(0, min(size, 65536))
            if not chunk:
                raise OSError("the connection ended")
            file.write(chunk)
            size -= len(chunk)
    os.execv(sys.executable, [sys.executable, agent, folder, sys.argv[3]])
except BaseException as error:
    shutil.rmtree(folder, ignore_errors=True)
    todo = "make it" if getattr(error, "errno", 0) == 2 else "free some space there"
    sys.exit("quantbench: the agent cannot be kept in %s (%s); %s, or name another folder for "
             "this board" % (parent, error, todo))
"""


def make_bundle(runtime: str) -> bytes:
    """Put the agent together; equal sources give equal bytes.

    Args:
        runtime: the backend's module for boards, e.g. ``qb_litert.runtime``: it needs NumPy
            and the runtime alone, and provides ``load(data, threads)``, which gives an
            executable, and ``installed()``, which gives name and version of the runtime.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    content = {"__main__.py": _START.format(runtime).encode()}
    for name in (*_OURS, runtime):
        content[name.replace(".", "/") + ".py"] = source_of(name).read_bytes()
        # Our own packages' files would draw in what boards do not have.
        parts = name.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            content["/".join([*parts[:depth], "__init__.py"])] = b""
    buffer = io.BytesIO()
    # Stored: a Python built without zlib reads it, and no version of zlib changes the bytes.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as bundle:
        for path, data in sorted(content.items()):
            bundle.writestr(zipfile.ZipInfo(path), data)
    return buffer.getvalue()


def shipped_files(runtime: str) -> list[Path]:
    """Give the source files that go to a board."""
    return [source_of(name) for name in (*_OURS, runtime)]


def source_of(module: str) -> Path:
    """Find a module's file without running it.

    Raises:
        ModuleNotFoundError: there is no such module, or it has no file.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"there is no module '{module}' to ship to a board")
    return Path(spec.origin)


def start_command(python: str, size: int, folder: str, silence_s: float) -> list[str]:
    """Give the words of the command that reads an agent of ``size`` bytes from stdin and runs it.

    Args:
        python: the interpreter.
        size: bytes of the bundle.
        folder: where it may write; empty for the system's temporary folder.
        silence_s: seconds without a word from us after which it ends.
    """
    return [python, "-c", _BOOTSTRAP, str(size), folder, f"{silence_s:g}"]
