"""What a stranger's artifacts take on a board: Python and NumPy."""

import io
import time

import numpy as np

LOADING_S = 0.05


def installed():
    return "numpy", np.__version__


def load(data, threads):
    arrays = dict(np.load(io.BytesIO(data)))
    weights = arrays["weights"] if "weights" in arrays else arrays["integers"] * arrays["scale"]
    time.sleep(LOADING_S)

    def run(inputs):
        return {"scores": (inputs["input"] @ weights.T).astype(np.float32)}

    return run
