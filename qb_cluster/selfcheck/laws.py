"""What must come out, computed by other means than the code that is checked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special

GAUSSIAN_NARROW = {
    2: (1.2240, 7.21),
    3: (0.6508, 13.29),
    4: (0.3534, 18.90),
    5: (0.1932, 24.33),
    6: (0.1055, 29.71),
    8: (0.0309, 40.54),
}
"""Optimal step and SQNR in dB by bits, N(0, 1) in integers ±(2^(b-1) - 1), by quadrature."""

GAUSSIAN_FULL = {4: 19.26, 8: 40.57}
"""SQNR in dB by bits, N(0, 1) in integers -2^(b-1) … 2^(b-1) - 1, by quadrature."""

LAPLACE = {8: 35.21}
"""SQNR in dB by bits of optimal uniform quantization (Max, 1960): only where levels that hold
zero, as ours do, and levels around it, as Max's, give the same."""

ACIQ_GAUSSIAN = {3: 2.15, 4: 2.55, 5: 2.93, 6: 3.28, 7: 3.61, 8: 3.92}
"""Clips in standard deviations by bits (Banner et al., arXiv 1810.05723)."""

ACIQ_LAPLACE = {3: 3.89, 4: 5.03, 5: 6.20, 6: 7.41, 7: 8.64, 8: 9.89}
"""Clips in units of b by bits; the same source."""

MATMUL = {(8, 8): 37.68, (4, 8): 18.89, (4, 4): 15.89}
"""SQNR in dB of a Gaussian matrix product by bits of weights and activations."""


def decibel(ratio: float) -> float:
    """Give 10·log10 of a ratio of powers."""
    return float(10 * np.log10(ratio))


def power(db: float) -> float:
    """Give the ratio of powers that so many dB are."""
    return float(10 ** (db / 10))


def max_abs_db(length: int, limit: int) -> float:
    """Give the pooled SQNR of Gaussian rows, each with a scale of max|w| / limit.

    All values but the largest, which is exact, err by step² / 12 in the mean; and
    E[max²] = ∫ 2x·(1 - erf(x/√2)^n) dx.

    Args:
        length: of a row.
        limit: the largest integer.
    """
    mean_square, _ = integrate.quad(
        lambda x: 2 * x * (1 - special.erf(x / np.sqrt(2)) ** length), 0, 20, limit=200
    )
    return decibel(12 * limit**2 / mean_square * length / (length - 1))


def float_db(values: NDArray[Any], fraction_bits: int, smallest_exponent: int) -> float:
    """Give the SQNR of rounding to a float format, from the spacing of its numbers.

    Args:
        values: what is rounded, in the units of the format.
        fraction_bits: of the format, without the hidden one.
        smallest_exponent: of its normal numbers; below it the spacing stays the same.
    """
    exponents = np.maximum(np.floor(np.log2(np.abs(values))), smallest_exponent)
    spacing = 2.0 ** (exponents - fraction_bits)
    return decibel(float(np.mean(values**2) / np.mean(spacing**2 / 12)))


def sign_flip_share(db: float) -> float:
    """Give the share of Gaussian margins that Gaussian noise so far below turns over."""
    return float(np.arctan(10 ** (-db / 20)) / np.pi)
