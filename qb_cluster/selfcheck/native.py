"""A backend's kernels, held against the reference arithmetic on the same tensors.

A model of one layer is quantized and run by the backend, and the same layer is computed in NumPy
from weights and inputs that the reference arithmetic has rounded. What both lose against float
must agree. Models come from a plug-in, for this package imports no framework.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import plugins
from qb_cluster.contracts import (
    Artifact,
    Backend,
    Bits,
    Calibration,
    Execution,
    LoadModel,
    Quantization,
    Ref,
    Scheme,
)
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.evaluation.inference import run
from qb_cluster.quantization import schemes
from qb_cluster.quantization.affine import (
    affine_qparams,
    quantize_dequantize_affine,
    symmetric_qparams,
)
from qb_cluster.quantization.observers import make_observer
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_cluster.selfcheck.check import Check
from qb_cluster.selfcheck.oracle_layers import EXAMPLES, Array, OracleLayer, oracle_layers

_ORACLES: Final = {"torch": "qb_pytorch.oracle", "keras": "qb_tensorflow.oracle"}
"""Modules with model builders by kind of layer, by kind of model. All take weights, inputs and
outputs in torch's layout, as ``qb_pytorch.oracle`` says."""
_TOLERANCE_DB: Final = 0.3
_LAW: Final = "NumPy on the same tensors, SQNR dB"


@dataclass(frozen=True, slots=True)
class _Case:
    scheme: Scheme
    bits: str
    options: str = ""
    execution: Execution = "native"

    @property
    def label(self) -> str:
        words = (self.scheme.name, self.bits, self.options, self.execution)
        return " ".join(word for word in words if word not in {"", "native"})


_CASES: Final = (
    _Case(schemes.weight_only(), "w8"),
    _Case(schemes.weight_only(), "w4"),
    _Case(schemes.weight_only(granularity="per_tensor"), "w8", "per_tensor"),
    _Case(schemes.weight_only(granularity="per_group", group_size=16), "w4", "per_group(16)"),
    _Case(
        schemes.weight_only(granularity="per_group", group_size=16, weight_range="minmax"),
        "w4",
        "per_group(16), narrow",
    ),
    _Case(schemes.weight_only(symmetric=False), "w4", "affine"),
    _Case(schemes.weight_only(narrow_range=False), "w4", "full range"),
    _Case(schemes.weight_only(weight_range="mse"), "w4", "mse"),
    _Case(schemes.weight_only(weight_range="signed_max"), "w4", "signed scale"),
    _Case(schemes.fp16(), "w16a16"),
    _Case(schemes.bf16(), "w16a16"),
    _Case(schemes.fp8("e4m3"), "w8", "e4m3"),
    _Case(schemes.fp8("e5m2"), "w8", "e5m2"),
    _Case(schemes.dynamic(), "w8a8"),
    _Case(schemes.dynamic(), "w4a8"),
    _Case(schemes.dynamic(weight_range="signed_max"), "w4a8", "signed scale"),
    _Case(schemes.static(), "w8a8"),
    _Case(schemes.static(), "w4a8"),
    _Case(schemes.static(symmetric_activations=True), "w8a8", "symmetric"),
    _Case(schemes.weight_only(), "w3", execution="simulated"),
    _Case(schemes.dynamic(), "w4a6", execution="simulated"),
    _Case(schemes.static(), "w6a4", execution="simulated"),
)

_WITH_EVERY_OPTION: Final = ("linear", "conv")
_OF_EVERY_KIND: Final = (
    "weight_only w8",
    "weight_only w4",
    "dynamic w8a8",
    "static w8a8",
    "weight_only w3 simulated",
)
"""Cases of the other kinds of layer: what options do to weights, the two above show."""


def check_backend(name: str) -> Iterator[Check]:
    """Check what a backend supports of the common schemes; takes seconds.

    Args:
        name: a registered name or an import path. One that cannot be imported is a miss.
    """
    try:
        backend: Backend = plugins.make("backend", Ref(name, name))
    except PlugInError as error:
        yield _broken(name, "can be made", 1.0, error)
        return
    missing = [module for module in backend.requires if not _installed(module)]
    oracle = next((_ORACLES[kind] for kind in backend.takes if kind in _ORACLES), None)
    if missing:
        yield _unchecked(name, f"not installed: {', '.join(missing)}")
    elif oracle is None:
        yield _unchecked(name, f"no oracle models of the kind it takes: {', '.join(backend.takes)}")
    elif not _installed(oracle):
        yield _unchecked(name, f"its oracle models are in '{oracle}', which is not installed")
    else:
        for layer in oracle_layers():
            try:
                plugins.check("model", f"{oracle}:{layer.kind}")
            except PlugInError:
                yield _unchecked(f"{name}, {layer.kind}", f"{oracle} has no model of this kind")
                continue
            yield from _check_layer(name, backend, layer, layer.model(oracle))


def _check_layer(
    name: str, backend: Backend, layer: OracleLayer, model: LoadModel
) -> Iterator[Check]:
    subject = f"{name}, {layer.kind}"
    exact = layer.exact
    try:
        baseline = backend.convert(model, {"input": layer.inputs[:1]})
        outputs = _run(backend, baseline, model, layer)
    except Exception as error:
        yield _broken(f"{subject} float", "NumPy", 0.0, error)
        return
    worst = deviation(exact, outputs).max_abs_error / float(np.abs(exact).max())
    yield Check(f"{subject} float", "NumPy, largest error ÷ largest output", 0.0, worst, 1e-4)
    for case in _cases(layer):
        static = case.scheme.activations == "static"
        calibration = Calibration(EXAMPLES) if static else None
        bits = Bits.parse(case.bits)
        quantization = Quantization(case.scheme, bits, case.execution, calibration)
        if backend.support(quantization).supported:
            label = f"{subject} {case.label}"
            yield _check_case(label, backend, layer, model, baseline, quantization)


def _cases(layer: OracleLayer) -> Iterator[_Case]:
    """Give what a layer is checked under.

    What a scheme rounds inside a layer that multiplies more than once differs among runtimes, so
    such a layer is held by its weights.
    """
    for case in _CASES:
        is_weights = case.scheme.activations == "none"
        if layer.kind in _WITH_EVERY_OPTION or (
            case.label in _OF_EVERY_KIND and (is_weights or layer.has_one_input)
        ):
            yield case


def _check_case(
    subject: str,
    backend: Backend,
    layer: OracleLayer,
    model: LoadModel,
    baseline: Artifact,
    quantization: Quantization,
) -> Check:
    exact = layer.exact
    references = _references(layer, quantization)
    examples = {"input": layer.inputs} if quantization.calibration else None
    try:
        artifact = backend.quantize(model, baseline, quantization, examples)
        if not artifact.facts.quantized_parameters and layer.kind != "linear":
            caveat = backend.support(quantization).reason
            return _unchecked(subject, f"the weight stays float: {caveat or 'no reason given'}")
        outputs = _run(backend, artifact, model, layer)
    except UnsupportedError as error:
        return _unchecked(subject, f"unsupported: {error}")
    except Exception as error:
        return _broken(subject, _LAW, references[""], error)
    got = deviation(exact, outputs).sqnr_db
    references = _references(layer, _declared(quantization, artifact))
    nearest = min(references, key=lambda rounded: abs(references[rounded] - got))
    notes = [nearest] if nearest else []
    return Check(
        subject,
        _LAW,
        references[nearest],
        got,
        _TOLERANCE_DB,
        "; ".join((*notes, *artifact.facts.notes)),
    )


def _declared(quantization: Quantization, artifact: Artifact) -> Quantization:
    """Give what an artifact says of itself: fewer bits, where int8 kernels of this CPU saturate.

    Who says nothing is held against what was asked for.
    """
    return replace(quantization, bits=artifact.facts.effective_bits or quantization.bits)


def _references(layer: OracleLayer, quantization: Quantization) -> dict[str, float]:
    """Give the SQNR in dB that the scheme demands, by what is rounded beyond its minimum.

    Where all of a computation is in few bits, runtimes differ: some keep every activation in
    integers, others none but the inputs of layers; some compute in half precision, others only
    store in it; a table that is looked up may have one scale. The key of the minimum is empty.
    """
    scheme, bits = quantization.scheme, quantization.bits
    exact = layer.exact
    weights = layer.rounded(scheme, bits)

    def sqnr_db(outputs: NDArray[Any]) -> float:
        return deviation(exact, outputs).sqnr_db

    if bits.activation is None:
        return {"": sqnr_db(layer.outputs(layer.inputs, weights))}
    if scheme.number != "integer":
        inputs = quantize_dequantize_weights(layer.inputs, scheme, bits)
        outputs = layer.outputs(inputs, weights)
        rounded = quantize_dequantize_weights(outputs.astype(np.float32), scheme, bits)
        return {
            "": sqnr_db(layer.outputs(layer.inputs, weights)),
            "inputs rounded too": sqnr_db(outputs),
            "inputs and outputs rounded too": sqnr_db(rounded),
        }

    def activations(values: Array) -> Array:
        assert bits.activation is not None
        return _rounded(values, bits.activation, symmetric=scheme.symmetric_activations)

    if layer.inputs.dtype != np.float32:  # numbers of rows, which nothing rounds
        found = layer.outputs(layer.inputs, weights)
        coarse = layer.rounded(replace(scheme, granularity="per_tensor"), bits)
        as_activations = {name: activations(weight) for name, weight in layer.weights.items()}
        return {
            "": sqnr_db(found),
            "outputs rounded too": sqnr_db(activations(found.astype(np.float32))),
            "one scale for the whole table": sqnr_db(layer.outputs(layer.inputs, coarse)),
            "the table is rounded as activations are": sqnr_db(
                layer.outputs(layer.inputs, as_activations)
            ),
        }
    if quantization.calibration is None:
        inputs = np.stack([activations(example) for example in layer.inputs])
        return {"": sqnr_db(layer.outputs(inputs, weights))}
    outputs = layer.outputs(activations(layer.inputs), weights)
    rounded = activations(outputs.astype(np.float32))
    return {"": sqnr_db(outputs), "outputs rounded too": sqnr_db(rounded)}


def _rounded(values: Array, bits: int, *, symmetric: bool) -> Array:
    observer = make_observer(Calibration(), bits, symmetric=symmetric)
    observer.update(values)
    qparams = symmetric_qparams if symmetric else affine_qparams
    return quantize_dequantize_affine(values, *qparams(*observer.range(), bits), bits)


def _run(backend: Backend, artifact: Artifact, model: LoadModel, layer: OracleLayer) -> Array:
    executable = backend.open(artifact, model, 1)
    return run(executable, {"input": layer.inputs}, EXAMPLES)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


def _unchecked(subject: str, why: str) -> Check:
    return Check(subject, _LAW, None, None, None, why)


def _broken(subject: str, law: str, expected: float, error: Exception) -> Check:
    note = f"{type(error).__name__}: {error}"
    return Check(subject, law, expected, math.nan, _TOLERANCE_DB, note)
