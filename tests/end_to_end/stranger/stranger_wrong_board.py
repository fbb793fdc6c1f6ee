"""A board whose kernels take the integers of the wrong class; in float it computes right."""

import io

import numpy as np


def installed():
    return "numpy", np.__version__


def load(data, threads):
    arrays = dict(np.load(io.BytesIO(data)))
    is_float = "weights" in arrays
    weights = arrays["weights"] if is_float else arrays["integers"] * arrays["scale"]

    def run(inputs):
        scores = (inputs["input"] @ weights.T).astype(np.float32)
        return {"scores": scores if is_float else np.roll(scores, 1, axis=1)}

    return run
