"""Inputs and outputs by name: what a model takes of a dataset, and the order of what it gives."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays
from qb_cluster.errors import CellError


def feed(specs: Mapping[str, Any], arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Give each input of a model its array, in its dtype; a lone one may have any name.

    Args:
        specs: a ``tf.TensorSpec`` for each input, by name.
        arrays: by name.

    Raises:
        CellError: an input is missing.
    """
    if len(arrays) == len(specs) == 1:
        arrays = dict(zip(specs, arrays.values(), strict=True))
    if missing := [name for name in specs if name not in arrays]:
        raise CellError(
            f"the batch has no input {', '.join(missing)}; it has {', '.join(arrays)}: name the "
            "dataset's inputs as the model does"
        )
    return {
        name: np.asarray(arrays[name], spec.dtype.as_numpy_dtype) for name, spec in specs.items()
    }


def in_order(outputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Sort outputs by name, numbers by their value.

    TensorFlow sorts the keys of mappings, and TFLite files list outputs in any order; the float
    and the quantized model must agree on which comes first.
    """
    return {name: outputs[name] for name in sorted(outputs, key=_natural)}


def _natural(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name)  # text and digits in turn, so that like meets like
    return [int(part) if part.isdigit() else part for part in parts]
