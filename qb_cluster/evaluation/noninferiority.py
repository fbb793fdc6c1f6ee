"""Is a loss shown to be within a margin, or beyond it? One-sided tests, and what they would need.

With δ the true change of a metric (quantized minus float) and m > 0 the margin:

- *within* rejects δ ≤ -m: the loss is smaller than the margin (non-inferiority);
- *worse* rejects δ ≥ -m: the loss is larger than the margin.

For metrics that are right or wrong on an example, both are exact unconditional tests of paired
proportions, ordered by the score statistic of Nam (1997, Biometrics 53:1422) and Tango (1998,
Statistics in Medicine 17:891). The unknown rate of discordant pairs is maximized over, within a
confidence set whose error is added to p (Berger and Boos 1994, JASA 89:1012), so that the error
rate is never above its nominal value. For other metrics it is a t-test on the standard error that
an interval implies.
"""

import functools
import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats: importing it would take a third of a report's time

Direction = Literal["within", "worse"]

_SET_ERROR: Final = 1e-4  # at most, of the confidence set for the rate of discordant pairs
_SET_SHARE: Final = 20  # it takes no more than one part in so many of the level tested at
_TAIL: Final = 1e-12  # counts beyond it are not summed over
_GRID: Final = 33  # rates of the confidence set that are tried
_TIE: Final = 1e-9  # statistics that close are the same
_Counts = NDArray[np.int64]


def direction(delta: float, margin: float) -> Direction:
    """Tell which of the two could be shown: the other's p is above one half or so."""
    return "within" if delta > -margin else "worse"


@functools.lru_cache(maxsize=2**14)  # cells of a sweep share few counts
def paired_p(
    losses: int, gains: int, n: int, margin: float, shown: Direction, level: float = 0.05
) -> float:
    """Give the exact p of a change of paired proportions, (gains - losses) / n.

    Args:
        losses: examples right in float and wrong quantized.
        gains: the reverse.
        n: examples in all, positive.
        margin: the accepted loss as a share of the examples, above 0 and below 1.
        shown: what is to be shown.
        level: what p will be held against where it is smallest, chosen before the counts are
            seen; it decides the confidence set.

    Returns:
        At most 1; never below the error of the confidence set, a twentieth of ``level`` at most.
    """
    discordant, error = losses + gains, min(_SET_ERROR, level / _SET_SHARE)
    # The confidence set of Clopper and Pearson (1934).
    low = special.betaincinv(discordant, n - discordant + 1, error / 2) if discordant else 0.0
    high = special.betainccinv(discordant + 1, n - discordant, error / 2) if discordant < n else 1.0
    # In terms of the rate of gains: the rate of discordant pairs is twice it plus the margin.
    first, last = max(0.0, (low - margin) / 2), (high - margin) / 2
    if shown == "worse":  # below the margin nobody loses more: the nearest rate stands for those
        last = max(last, min(high, margin) / 2)
    elif last < 0:  # a rate this low cannot lose the margin
        return error
    ends = float(first), float(min(last, (1 - margin) / 2))
    rates = np.linspace(*ends, _GRID, dtype=np.float64)[:, None]
    each = _likely(n, float(rates[0, 0]), float(rates[-1, 0]))
    until = _largest_losses(_score(losses, gains, n, margin), each, n, margin, shown)
    # Given the gains, losses are binomial among the other examples.
    among = np.minimum(1.0, (rates + margin) / (1 - rates))
    below = np.where(until < 0, 0.0, _at_most(until, n - each, among))
    tail = below if shown == "within" else 1 - below
    p = (_exactly(each, n, rates) * tail).sum(axis=1).max()
    return min(1.0, float(p) + error + 2 * _TAIL)


def mean_p(delta: float, error: float, n: int, margin: float, shown: Direction) -> float:
    """Give the p of a change with a standard error, by Student's t with n - 1 degrees of freedom.

    Args:
        delta: the change.
        error: its standard error, positive.
        n: examples, at least 2.
        margin: the accepted loss, in the metric's unit.
        shown: what is to be shown.
    """
    distance = (delta + margin) / error
    return float(special.stdtr(n - 1, -distance if shown == "within" else distance))


def implied_error(low: float, high: float, confidence: float, n: int) -> float:
    """Give the standard error that a two-sided bootstrap interval implies.

    Half its width ÷ the normal quantile, times √(n / (n - 1)): resampling n examples varies by
    so much less than drawing n new ones.
    """
    reach = (high - low) / 2 / special.ndtri((1 + confidence) / 2)
    return float(reach * math.sqrt(n / (n - 1)))


def paired_examples_needed(
    losses: int, gains: int, n: int, margin: float, level: float
) -> int | None:
    """Tell how many examples would decide, were the rates of losses and gains those seen.

    At fixed rates the score statistic grows with √n. ``None`` where the change seen is the margin
    itself, which no number of examples would decide.

    Args:
        losses: see ``paired_p``, as of all that follow.
        gains: the same.
        n: the same.
        margin: the same.
        level: what p has to come down to, below one half.
    """
    return _needed(abs(_score(losses, gains, n, margin)), n, level)


def mean_examples_needed(
    delta: float, error: float, n: int, margin: float, level: float
) -> int | None:
    """Tell how many examples would decide, were change and spread those seen; see ``mean_p``."""
    return _needed(abs(delta + margin) / error, n, level)


def detectable(discordance: float, n: float, confidence: float, power: float = 0.8) -> float:
    """Give the smallest change of paired proportions that n examples would show.

    (z₁₋α/₂ + z₁₋β)·√(discordance / n), Miettinen (1968, Biometrics 24:339).

    Args:
        discordance: share of the examples that are right in one arm alone, 0 to 1.
        n: examples.
        confidence: 1 - α, of the two-sided test.
        power: 1 - β, the chance to show it.
    """
    return _reach(confidence, power) * math.sqrt(discordance / n)


def examples_for(discordance: float, change: float, confidence: float, power: float = 0.8) -> int:
    """Give how many examples it takes to show a change: ``detectable`` solved for n."""
    return math.ceil(discordance * (_reach(confidence, power) / change) ** 2)


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values for their number (Holm 1979, Scand. J. Statist. 6:65), shape (k,)."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(count)
    stepwise = p_values[order] * (count - np.arange(count))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepwise))
    return adjusted


def _reach(confidence: float, power: float) -> float:
    return float(special.ndtri((1 + confidence) / 2) + special.ndtri(power))


def _needed(distance: float, n: int, level: float) -> int | None:
    if distance < _TIE:
        return None
    quantile = float(-special.ndtri(level))
    return max(n + 1, math.ceil(n * (quantile / distance) ** 2))


def _likely(n: int, lowest: float, highest: float) -> _Counts:
    """Give the counts of a binomial that its tails leave, for every rate between two."""
    least = math.floor(special.bdtrik(_TAIL, n, lowest)) if lowest > 0 else 0
    most = math.ceil(special.bdtrik(1 - _TAIL, n, highest)) if highest > 0 else 0
    return np.arange(max(0, least), min(n, most) + 1)


def _at_most(counts: _Counts, n: _Counts, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the distribution function of a binomial; 1 where a count is n or more."""
    inside = np.clip(counts, 0, np.maximum(n - 1, 0))
    below = special.betainc(n - inside, inside + 1.0, 1 - rates)
    found: NDArray[np.float64] = np.where(counts >= n, 1.0, below)
    return found


def _exactly(counts: _Counts, n: int, rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the probabilities of a binomial."""
    ways = special.gammaln(n + 1) - special.gammaln(counts + 1) - special.gammaln(n - counts + 1)
    logs = ways + special.xlogy(counts, rates) + special.xlog1py(n - counts, -rates)
    found: NDArray[np.float64] = np.exp(logs)
    return found


def _score(losses: int, gains: int, n: int, margin: float) -> float:
    return float(_scores(np.array([losses]), np.array([gains]), n, margin)[0])


def _scores(losses: _Counts, gains: _Counts, n: int, margin: float) -> NDArray[np.float64]:
    """Give the score statistic of δ = -margin; larger for larger losses."""
    b, c = losses.astype(np.float64), gains.astype(np.float64)
    # The rate of gains that is most likely under δ = -margin (Tango 1998, equation 4).
    linear = (2 * n - b + c) * margin - b - c
    constant = -c * margin * (1 - margin)
    rate = (np.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)
    variance = n * (2 * rate + margin * (1 - margin))
    return (b - c - n * margin) / np.sqrt(variance)


def _largest_losses(
    seen: float, gains: _Counts, n: int, margin: float, shown: Direction
) -> _Counts:
    """Give, for each count of gains, the most losses whose statistic is at most the one seen.

    For ``worse``: below it. -1 where there is none. Found by bisection. The maximum over rates
    needs limits that never fall as gains rise; a dip would be filled so that p grows.
    """
    limit = seen + _TIE if shown == "within" else seen - _TIE
    low, high = np.full(len(gains), -1), n - gains
    while np.any(low < high):
        middle = (low + high + 1) // 2
        is_below = _scores(middle, gains, n, margin) <= limit
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle - 1)
    if shown == "within":
        return np.maximum.accumulate(low)
    low = np.where(low == n - gains, n, low)  # all that there can be: no limit at all
    return np.minimum.accumulate(low[::-1])[::-1]
