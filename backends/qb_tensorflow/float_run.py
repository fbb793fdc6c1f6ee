"""Running a float or simulated model by TensorFlow itself."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Arrays, Artifact
from qb_cluster.errors import UnsupportedError
from qb_tensorflow import fake_quantization, keras_file, saved_model
from qb_tensorflow.feeding import feed, in_order
from qb_tensorflow.framework import tensorflow

LONE_OUTPUT = "output"

Run = Callable[[dict[str, Any]], Mapping[str, Any]]


class TensorFlowExecutable:
    """A TensorFlow function, traced once, that takes and gives NumPy arrays.

    Args:
        run: takes tensors by name, gives tensors by name.
        specs: a ``tf.TensorSpec`` for each input, by name; axis 0 is ``None`` or 1.

    Raises:
        UnsupportedError: an input has a fixed batch of more than 1.
    """

    def __init__(self, run: Run, specs: Mapping[str, Any]) -> None:
        self._tensor = tensorflow().constant
        self._errors = tensorflow().errors
        self._run = run
        self._specs = dict(specs)
        batches = {name: spec.shape[0] for name, spec in self._specs.items()}
        for name, batch in batches.items():
            if batch not in {None, 1}:
                raise UnsupportedError(
                    f"input '{name}' has a fixed batch of {batch}; save the model with a batch "
                    "of None or 1"
                )
        self._is_one_by_one = 1 in batches.values()

    def __call__(self, inputs: Arrays, /) -> dict[str, NDArray[np.float32]]:
        """Run ``n`` examples.

        Args:
            inputs: by name, each ``(n, …)``; a lone input may have any name.

        Returns:
            Outputs by name, each ``(n, …)``; a lone output is called ``output``.

        Raises:
            CellError: an input is missing.
            UnsupportedError: there is no kernel for it on this CPU.
        """
        fed = feed(self._specs, inputs)
        count = len(next(iter(fed.values())))
        if not self._is_one_by_one or count == 1:
            return self._outputs(fed)
        rows = [
            self._outputs({name: values[row : row + 1] for name, values in fed.items()})
            for row in range(count)
        ]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _outputs(self, fed: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        tensors = {name: self._tensor(values) for name, values in fed.items()}
        try:
            outputs = self._run(tensors)
        except (self._errors.UnimplementedError, self._errors.InvalidArgumentError) as error:
            if "NHWC" not in str(error):
                raise
            raise UnsupportedError(
                "TensorFlow has no kernel for channels-first convolutions on this CPU; take a "
                "model with the channels last, or set TF_ENABLE_ONEDNN_OPTS=1, which has some"
            ) from error
        arrays = {name: out.numpy().astype(np.float32) for name, out in outputs.items()}
        return {LONE_OUTPUT: next(iter(arrays.values()))} if len(arrays) == 1 else in_order(arrays)


def executable(artifact: Artifact) -> TensorFlowExecutable:
    """Open a float artifact, or a simulated one."""
    if artifact.format == keras_file.FORMAT:
        return _keras(artifact.data)
    return _saved_model(artifact.data)


def _keras(data: bytes) -> TensorFlowExecutable:
    tf = tensorflow()
    model = keras_file.load(data)
    if (activations := keras_file.activations(data)) is not None:
        fake_quantization.attach(model, activations)
    specs = keras_file.input_specs(model)
    function = tf.function(lambda tensors: _named(keras_file.call(model, tensors)), [specs])
    # Concrete, because looking for the right trace costs a third of a small model's call.
    return TensorFlowExecutable(function.get_concrete_function(), specs)


def _saved_model(data: bytes) -> TensorFlowExecutable:
    with saved_model.unpacked(data) as folder:
        signature = saved_model.load(folder)
    return TensorFlowExecutable(
        lambda tensors: signature.function(**tensors),
        signature.function.structured_input_signature[1],
    )


def _named(outputs: Any) -> dict[str, Any]:
    """Name outputs as the signatures of TensorFlow do, lists by their position."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    listed = outputs if isinstance(outputs, list | tuple) else [outputs]
    return {f"{LONE_OUTPUT}_{index}": output for index, output in enumerate(listed)}
