"""The contract between the runner and a runtime.

A backend is a small object over one framework. Creating it, and asking it for ``support``,
imports no framework: the command line does both for every backend a spec names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts.bits import Bits
from qb_cluster.contracts.coverage import Coverage, Scope
from qb_cluster.contracts.scheme import Quantization

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays; examples along axis 0 of each. A lone unnamed input is called ``input``."""

LoadModel = Callable[[], Any]
"""Gives the float model that the spec names, loaded once per worker. Never change it in place."""


@dataclass(frozen=True, slots=True)
class Support:
    """Whether a backend can do what it is asked.

    Attributes:
        supported: whether it can.
        reason: why not, or with what caveat.
        scope: which activations it rounds, where it rounds any and the scheme leaves it open.
    """

    supported: bool
    reason: str = ""
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """What an artifact really holds, read from the artifact, not from the request.

    Attributes:
        parameters: number of parameters of the float model.
        parameter_bytes: bytes that store them, scales and zero points included; ``None``
            where the artifact stores floats on purpose (simulated).
        quantized_parameters: how many of them are stored in (simulated: rounded to) integers,
            or the float format that was asked for.
        notes: one short clause per surprise, e.g. "2 of 4 weight tensors stay float".
        integer_mac_share: share of the multiply-accumulates of convolutions and matrix products
            that run in integer arithmetic, for one example; ``None`` where unknown, 0 for
            float and for simulated.
        fallback_ops: kinds of convolutions and matrix products that stayed float although
            the scheme covers them, sorted, in the runtime's own words, e.g. ``("Conv2d",)``.
        integer_layer_mac_share: the same share as ``integer_mac_share`` over the products that
            the scheme covers: those that have weights, one factor depending on no input, but
            for layers that it leaves float. Products of two activations, as inside attention,
            have none. ``None`` where unknown, and where the model has no such product; 0 for
            float and for simulated.
        coverage: of the scheme; ``None`` where unknown, and for float.
        scope: which activations are rounded; ``None`` where none are.
        effective_bits: what is computed in, where this CPU's kernels are narrower than was asked
            for; ``None`` where they are not.
    """

    parameters: int
    parameter_bytes: int | None
    quantized_parameters: int
    notes: tuple[str, ...] = ()
    integer_mac_share: float | None = None
    fallback_ops: tuple[str, ...] = ()
    integer_layer_mac_share: float | None = None
    coverage: Coverage | None = None
    scope: Scope | None = None
    effective_bits: Bits | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "ArtifactFacts":
        """Make facts of what ``dataclasses.asdict`` and JSON made of them.

        Raises:
            TypeError: a field is missing, or one is too many.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in plain.items()
        }
        if fields.get("coverage"):
            fields["coverage"] = {kind: tuple(count) for kind, count in plain["coverage"].items()}
        if fields.get("effective_bits"):
            fields["effective_bits"] = Bits(**fields["effective_bits"])
        return cls(**fields)

    @property
    def bits_per_weight(self) -> float | None:
        """Real bits per parameter: stored bits ÷ parameters. 32 for a float32 model."""
        if self.parameter_bytes is None or self.parameters == 0:
            return None
        return 8 * self.parameter_bytes / self.parameters


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model in a backend's own format, as bytes that can travel.

    Attributes:
        data: the file's content.
        format: file ending without a dot, e.g. ``tflite``, ``onnx``, ``pt``.
        facts: what was found in it.
    """

    data: bytes
    format: str
    facts: ArtifactFacts


class Executable(Protocol):
    """An artifact ready to run on one device.

    What computes on an accelerator may also have:

    - ``stopwatch(inputs) -> Callable[[], int]``: moves the inputs there once; each call of the
      function then runs the model once, waits for it, and gives the nanoseconds that it took by
      the accelerator's own clock, transfers excluded;
    - ``peak_memory_bytes() -> int | None``: the most of the accelerator's memory that weights
      and one batch have taken since it was opened; ``None`` where unknown.
    """

    def __call__(self, inputs: Arrays, /) -> Mapping[str, NDArray[np.float32]]:
        """Run a batch.

        Args:
            inputs: every input of the model, ``n`` examples along axis 0.

        Returns:
            Outputs by name in the model's order, float32, ``n`` examples along axis 0. What
            one example gives never depends on the others in its batch, but for the rounding
            of float sums, which may depend on the batch's size.
        """


class Backend(Protocol):
    """One runtime: how it converts, quantizes and runs a model.

    Attributes:
        name: the name a spec uses, and the extra that installs it.
        requires: modules that must be importable where it works.
        distributions: packages whose versions belong in the record of the environment.
        takes: the kinds of model it converts, see ``catalog.model``: ``torch``, ``keras``,
            ``saved_model``, ``onnx``, ``tflite``, ``pt2``, or ``object`` for anything else.

    A backend that can do less with models of some kind also has ``refuses(kind, quantization) ->
    str``, which says why, or nothing. It is asked of model files where ``support`` said yes; for
    what a callable returns, ``quantize`` finds out.

    A backend that simulates on files of its own format has ``simulates: tuple[str, ...]``, the
    kinds of model that it simulates. Others simulate all that they take. Under ``execution: auto``
    a callable's model, whose kind shows late, is left to those; ``execution: simulated`` asks it.

    A backend that can compute its native artifacts by reference arithmetic also has
    ``reference(artifact, model, threads) -> Executable``: the same artifact without fast kernels,
    slow as it may be. Its fast kernels are held against it. An ``UnsupportedError`` leaves them to
    the simulation. Where right kernels are further from it than rounding explains,
    ``reference_slack_db: float`` says by how much more noise.

    A backend that runs models of some kinds as they are, in their own framework, names them in
    ``home: tuple[str, ...]``: float artifacts of others are held against it. One that computes
    float32 models in fewer bits says so in ``float_precision: str``, such as ``bf16``.

    A backend may say in ``handles: Handlings`` what becomes of each kind of layer natively, in 8
    bits and without options: ``qb backends NAME`` shows it.

    A backend whose artifacts run on boards also has ``board_runtime: str``, the name of a module
    that does with Python 3.8, NumPy and the runtime: see ``boards.bundle.make_bundle``.

    A backend that knows what weights take in its artifacts also has ``stored_bytes(kind, shape,
    quantization) -> float | None``: the bytes of a layer's weight (output channels first) with its
    scales and zero points, where it is quantized natively as ``support`` said yes to; ``None``
    where it stays float. It imports no framework. ``qb propose`` adds them up.

    A backend that computes on GPUs also has ``on_gpu() -> Backend``: the same for the one GPU that
    this process sees, with a ``support`` of its own. It too imports no framework. Float32 is to
    be float32 there, not TF32. What only the card can tell (its compute capability) ``quantize``
    and ``open`` find out, with an ``UnsupportedError``; its artifacts open on a GPU alone.
    """

    name: str
    requires: tuple[str, ...]
    distributions: tuple[str, ...]
    takes: tuple[str, ...]

    def support(self, quantization: Quantization) -> Support:
        """Tell whether this can be done, without importing the framework."""

    def convert(self, model: LoadModel, example: Arrays) -> Artifact:
        """Turn the float model into this runtime's float artifact: the baseline.

        Args:
            model: gives the model.
            example: one real example (axis 0 has length 1), for tracing.
        """

    def quantize(
        self,
        model: LoadModel,
        baseline: Artifact,
        quantization: Quantization,
        calibration: Arrays | None,
    ) -> Artifact:
        """Quantize.

        Args:
            model: gives the float model, for runtimes that start from it.
            baseline: what ``convert`` gave, for runtimes that start from that.
            quantization: scheme, bits and execution; ``support`` said yes to it.
            calibration: calibration examples; given exactly when the scheme's activations
                are ``static``.

        Raises:
            UnsupportedError: it turns out only now that this cannot be done to this model.
        """

    def open(self, artifact: Artifact, model: LoadModel, threads: int) -> Executable:
        """Make an artifact ready to run with this many threads.

        Needs only the runtime; ``model`` is for runtimes whose artifact is weights without
        code, and others never call it.

        Raises:
            UnsupportedError: this runtime has no kernels for what the artifact holds.
        """
