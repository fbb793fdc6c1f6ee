"""The other runtime of TFLite files, in an environment of its own."""

import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[2]


def python_with_tflite_runtime():
    """Python in an environment that has nothing but NumPy 1 and tflite-runtime."""
    folder = ROOT / ".venv-tflite-runtime"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        python, stamp = folder / "bin" / "python", folder / ".installed"
        if not stamp.exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            install = ["install", "--quiet", "numpy<2", "tflite-runtime==2.14.0"]
            subprocess.run([python, "-m", "pip", *install], check=True)
            stamp.touch()
    return python
