"""The metrics and the paired statistics, held against noise that was put in on purpose."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from scipy import stats

from qb_cluster.contracts import Bits, Scheme
from qb_cluster.evaluation.deviation import deviation
from qb_cluster.evaluation.metrics import accuracy
from qb_cluster.evaluation.paired import compare_scores, proportion_difference
from qb_cluster.quantization.weights import quantize_dequantize_weights
from qb_cluster.selfcheck import laws
from qb_cluster.selfcheck.check import Check
from qb_cluster.selfcheck.sources import gaussian

_VALUES: Final = 2**19
_CONFIDENCE: Final = 0.95


def check_metrics() -> Iterator[Check]:
    """Check every metric and interval; takes a second."""
    yield from _injected_noise()
    yield from _sign_flips()
    yield from _cosine()
    yield from _mcnemar()
    yield from _coverage()


def _injected_noise() -> Iterator[Check]:
    signal = gaussian((_VALUES,)).astype(np.float64)
    noise = gaussian((_VALUES,), seed=1).astype(np.float64)
    noise *= np.sqrt((signal @ signal) / (noise @ noise))
    for db in (0.0, 30.0, 100.0):
        found = deviation(signal, signal + noise * 10 ** (-db / 20))
        yield Check("metric SQNR", "noise put in, dB", db, found.sqnr_db, 1e-6)
    shifted = signal.copy()
    shifted[7] += 0.25
    found = deviation(signal, shifted)
    yield Check("metric max abs error", "error put in", 0.25, found.max_abs_error, 1e-12)


def _sign_flips() -> Iterator[Check]:
    margin, noise = np.random.default_rng(4).standard_normal((2, _VALUES))
    scores = np.stack([margin, -margin], axis=1)
    for db in (10, 20, 30, 40):
        noisy = margin + noise * 10 ** (-db / 20)
        flips = np.stack([noisy, -noisy], axis=1)
        right = accuracy(flips.astype(np.float32), np.argmax(scores, axis=1))
        agreement = deviation(scores, flips).top1_agreement
        share = laws.sign_flip_share(db)
        sampling = 4 * float(np.sqrt(share * (1 - share) / _VALUES))
        law = f"sign flips at {db} dB, arctan(10^(-dB/20)) / π"
        for subject, got in (
            ("metric top-1 agreement", 1 - (agreement or 0.0)),
            ("metric accuracy", 1 - float(right.mean())),
        ):
            yield Check(subject, law, share, got, sampling, "4 standard errors")


def _cosine() -> Iterator[Check]:
    values = gaussian((1, _VALUES))
    for bits in (3, 4):
        rounded = quantize_dequantize_weights(
            values, Scheme("narrow", weight_range="mse"), Bits(bits)
        )
        expected = float(np.sqrt(1 - 1 / laws.power(laws.GAUSSIAN_NARROW[bits][1])))
        got = deviation(values, rounded).cosine
        yield Check(f"metric cosine, w{bits} mse", "√(1 - MSE)", expected, got, 0.0002)


def _mcnemar() -> Iterator[Check]:
    for worse, better in ((3, 1), (10, 2), (40, 25), (0, 0)):
        baseline = np.concatenate([np.ones(worse), np.zeros(better), np.ones(50)])
        quantized = np.concatenate([np.zeros(worse), np.ones(better), np.ones(50)])
        found = compare_scores(baseline, quantized, _CONFIDENCE)
        tail = float(stats.binom.cdf(min(worse, better), worse + better, 0.5))
        law = f"2·P(X ≤ min) of Binomial({worse + better}, ½)"
        yield Check("McNemar p-value", law, min(1.0, 2 * tail), found.p_value, 1e-12)


def _coverage() -> Iterator[Check]:
    n, trials, p_worse, p_better = 500, 4_000, 0.04, 0.02
    draws = np.random.default_rng(5).multinomial(
        n, [p_worse, p_better, 1 - p_worse - p_better], size=trials
    )
    counts, how_often = np.unique(draws[:, :2], axis=0, return_counts=True)
    truth, covered = p_better - p_worse, 0
    for (worse, better), times in zip(counts, how_often, strict=True):
        low, high = proportion_difference(int(worse), int(better), n, _CONFIDENCE)
        covered += int(times) * (low <= truth <= high)
    yield Check(
        "interval of a paired difference",
        f"coverage of {trials} samples of {n}",
        _CONFIDENCE,
        covered / trials,
        0.015,
        "4 standard errors",
    )
