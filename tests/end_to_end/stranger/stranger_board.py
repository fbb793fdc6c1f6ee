"""What a stranger's artifacts take on a board: Python and NumPy."""

import io
import sys
import time
from pathlib import Path

import numpy as np

LOADING_S = 0.05
LOADED_BEFORE_HOLD = 3
loaded = []


def installed():
    return "numpy", np.__version__


def load(data, threads):
    arrays = dict(np.load(io.BytesIO(data)))
    weights = arrays["weights"] if "weights" in arrays else arrays["integers"] * arrays["scale"]
    time.sleep(LOADING_S)
    loaded.append(data)
    # A test that puts this into the board's folder has an agent in the middle of something.
    hold = Path(sys.argv[1]).parent / "hold"
    while len(loaded) > LOADED_BEFORE_HOLD and hold.exists():
        hold.with_name("held").touch()
        time.sleep(0.02)

    def run(inputs):
        return {"scores": (inputs["input"] @ weights.T).astype(np.float32)}

    return run
