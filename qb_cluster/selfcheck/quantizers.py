"""The quantizers of weights and activations, held against the laws of uniform quantization."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts import Bits, NumberFormat, Scheme
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.quantization.affine import affine_qparams, quantize_dequantize_affine
from qb_cluster.quantization.weights import quantize_dequantize_weights, quantize_weights
from qb_cluster.selfcheck import laws
from qb_cluster.selfcheck.check import Check
from qb_cluster.selfcheck.sources import gaussian, laplace, uniform

_VALUES: Final = 2**19
_FLOAT_FORMATS: Final[tuple[tuple[NumberFormat, int, int], ...]] = (
    ("fp16", 10, -14),
    ("bf16", 7, -126),
    ("fp8_e4m3", 3, -6),
    ("fp8_e5m2", 2, -14),
)
"""Name, bits of the fraction, exponent of the smallest normal number (IEEE 754, OCP FP8)."""
_FP8_LARGEST: Final[dict[NumberFormat, float]] = {"fp8_e4m3": 448, "fp8_e5m2": 57_344}


def check_quantizers() -> Iterator[Check]:
    """Check every quantizer; takes seconds."""
    yield from _optimal_gaussian()
    yield from _uniform()
    yield from _max_abs_rows()
    yield from _granularity()
    yield from _signed_scales()
    yield from _float_formats()
    yield from _matmul()


def _optimal_gaussian() -> Iterator[Check]:
    values = gaussian((1, _VALUES))
    for bits, (step, expected) in laws.GAUSSIAN_NARROW.items():
        scheme = Scheme("narrow", weight_range="mse")
        stored = quantize_weights(values, scheme, Bits(bits))
        subject = f"weights w{bits} narrow, mse"
        got = _sqnr_db(values, stored.dequantized())
        yield Check(subject, "optimal Gaussian, SQNR dB", expected, got, *_tail(bits))
        yield Check(
            subject,
            "optimal Gaussian, step in σ",
            step,
            stored.scale.item(),
            0.015 * step,
            "the error is flat around its minimum",
        )
    for bits, expected in laws.GAUSSIAN_FULL.items():
        for name, options in (("full", {"narrow_range": False}), ("affine", {"symmetric": False})):
            got = _sqnr_db(values, _rounded(values, bits, weight_range="mse", **options))
            subject = f"weights w{bits} {name}, mse"
            yield Check(subject, "optimal Gaussian, SQNR dB", expected, got, *_tail(bits))
    values = laplace((1, _VALUES))
    for bits, expected in laws.LAPLACE.items():
        got = _sqnr_db(values, _rounded(values, bits, weight_range="mse", narrow_range=False))
        yield Check(f"weights w{bits} full, mse", "optimal Laplace, SQNR dB", expected, got, 0.1)


def _tail(bits: int) -> tuple[float, str]:
    """Give tolerance and note: a finite sample ends before the tail that 8 bits would clip."""
    return (0.02, "") if bits < 8 else (0.05, "the sample ends at 4.8 σ")


def _uniform() -> Iterator[Check]:
    values = uniform((1, _VALUES))
    sqnr_db = {bits: _sqnr_db(values, _rounded(values, bits)) for bits in (4, 8, 12, 16)}
    for bits in (4, 8):
        expected = 20 * np.log10(2 * (2 ** (bits - 1) - 1))
        yield Check(
            f"weights w{bits} narrow",
            "uniform source, 20·log10(2·(2^(b-1) - 1)) dB",
            float(expected),
            sqnr_db[bits],
            0.02,
        )
    per_bit = (sqnr_db[16] - sqnr_db[12]) / 4
    yield Check("weights w12 … w16 narrow", "dB per bit", float(20 * np.log10(2)), per_bit, 0.01)
    scale, zero_point = affine_qparams(-1.0, 1.0, 8)
    got = _sqnr_db(values, quantize_dequantize_affine(values, scale, zero_point, 8))
    expected = 20 * np.log10(2**8 - 1)
    yield Check(
        "activations a8 affine",
        "uniform source, 20·log10(2^b - 1) dB",
        float(expected),
        got,
        0.02,
    )
    values = gaussian((1, _VALUES))
    stored = quantize_weights(values, Scheme("narrow"), Bits(8))
    error = values.astype(np.float64) - stored.dequantized()
    yield Check(
        "weights w8 narrow",
        "RMSE ÷ scale = 1/√12",
        float(1 / np.sqrt(12)),
        float(np.sqrt(np.mean(error**2))) / stored.scale.item(),
        0.001,
    )


def _max_abs_rows() -> Iterator[Check]:
    for length in (9, 64, 576, 4096):
        # Independent samples here: rows of shuffled quantiles are not quite independent.
        rows = np.random.default_rng(1).standard_normal((2**21 // length, length), np.float32)
        yield Check(
            f"weights w8, rows of {length}",
            "max-abs on Gaussian rows, pooled SQNR dB",
            laws.max_abs_db(length, limit=127),
            _sqnr_db(rows, _rounded(rows, 8)),
            0.06,
            "Σ signal ÷ Σ noise over all rows; sampling",
        )


def _granularity() -> Iterator[Check]:
    ratio = 16
    weights = gaussian((2, _VALUES // 2))
    weights[1] = weights[0] / ratio
    small = [
        _sqnr_db(weights[1], _rounded(weights, 12, granularity=granularity)[1])
        for granularity in ("per_channel", "per_tensor")
    ]
    yield Check(
        f"weights w12, a channel {ratio} times smaller",
        "lost per tensor, 20·log10(r) dB",
        float(20 * np.log10(ratio)),
        small[0] - small[1],
        0.1,
    )
    rows = np.random.default_rng(2).standard_normal((2**13, 256), np.float32)
    grouped = _rounded(rows, 8, granularity="per_group", group_size=64)
    yield Check(
        "weights w8, groups of 64",
        "max-abs on Gaussian rows, pooled SQNR dB",
        laws.max_abs_db(64, limit=127),
        _sqnr_db(rows, grouped),
        0.06,
        "a group is a row of its own; sampling",
    )


def _signed_scales() -> Iterator[Check]:
    rows = np.random.default_rng(7).standard_normal((2**15, 32), np.float32)
    signed: dict[str, Any] = {"weight_range": "signed_max", "narrow_range": False}
    yield Check(
        "weights w8 signed scale, rows of 32",
        "max-abs on Gaussian rows, pooled SQNR dB",
        laws.max_abs_db(32, limit=128),
        _sqnr_db(rows, _rounded(rows, 8, **signed)),
        0.06,
        "a row's largest weight is -128; sampling",
    )
    for bits in (2, 4):
        stored = quantize_weights(rows, Scheme("signed", **signed), Bits(bits))
        lowest = -(2 ** (bits - 1))
        steps = (rows.astype(np.float64) - stored.dequantized()) / stored.scale
        # In steps of a scale of either sign the largest weight is the lowest integer.
        exact = rows / stored.scale.astype(np.float64)
        within = exact <= -lowest - 0.5
        subject = f"weights w{bits} signed scale, rows of 32"
        largest = np.abs(rows).argmax(axis=1)
        error = float(np.abs(steps[np.arange(len(rows)), largest]).max())
        yield Check(subject, "error of the largest weight", 0.0, error, 0.0)
        error = float(np.abs(steps[within]).max(initial=0.0))
        yield Check(subject, "largest error ÷ |scale|, not clipped", 0.5, error, 1e-3)
        error = float(steps[~within].max(initial=0.0))
        yield Check(subject, "largest error ÷ |scale|, clipped at -w_max", 1.0, error, 1e-2)


def _float_formats() -> Iterator[Check]:
    values = gaussian((1, _VALUES))
    for number, fraction_bits, smallest_exponent in _FLOAT_FORMATS:
        largest = _FP8_LARGEST.get(number)
        unit = 1.0 if largest is None else float(np.abs(values).max()) / largest
        yield Check(
            f"weights {number}",
            "Gaussian, spacing² ÷ 12, SQNR dB",
            laws.float_db(values.astype(np.float64) / unit, fraction_bits, smallest_exponent),
            _sqnr_db(values, _rounded(values, 8, number=number)),
            0.1,
            "" if largest is None else f"scaled so that max|w| is {largest:g}",
        )


def _matmul() -> Iterator[Check]:
    generator = np.random.default_rng(3)
    left, right = generator.standard_normal((2, 512, 512), np.float32)
    product = left.astype(np.float64) @ right
    for (weight_bits, activation_bits), expected in laws.MATMUL.items():
        weights, activations = (
            _rounded(matrix, bits, weight_range="mse", granularity="per_tensor")
            for matrix, bits in ((left, weight_bits), (right, activation_bits))
        )
        got = _sqnr_db(product, weights.astype(np.float64) @ activations)
        noise = sum(
            1 / laws.power(_sqnr_db(matrix, rounded))
            for matrix, rounded in ((left, weights), (right, activations))
        )
        subject = f"matrix product w{weight_bits}a{activation_bits}, mse"
        yield Check(
            subject, "1/SQNR = 1/SQNR(w) + 1/SQNR(a), dB", laws.decibel(1 / noise), got, 0.1
        )
        yield Check(subject, "Gaussian, SQNR dB", expected, got, 0.2, "sampling of the clips")


def _rounded(values: NDArray[np.float32], bits: int, **options: Any) -> NDArray[np.float32]:
    return quantize_dequantize_weights(values, Scheme("selfcheck", **options), Bits(bits))


def _sqnr_db(reference: NDArray[Any], got: NDArray[Any]) -> float:
    return deviation(reference, got).sqnr_db
