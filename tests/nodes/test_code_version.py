import re
import shutil
import subprocess
import sys
from pathlib import Path

import qb_cluster
from qb_cluster.nodes.code_version import code_version


def version_of(checkout):
    """Ask another process, in which a copy of the sources comes first."""
    code = f"import sys; sys.path.insert(0, {str(checkout)!r})\n"
    code += "from qb_cluster.nodes.code_version import code_version; print(code_version())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_one_code_has_one_name_wherever_it_lies_and_any_change_gives_another(tmp_path):
    own = code_version()
    assert re.fullmatch(r"\S+ \(code [0-9a-f]{8}, Python \d+\.\d+\.\d+\)", own)
    copy = tmp_path / "qb_cluster"
    shutil.copytree(Path(qb_cluster.__file__).parent, copy)
    assert version_of(tmp_path) == own
    with (copy / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert version_of(tmp_path) != own
