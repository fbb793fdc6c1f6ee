"""The schemes that come with QuantBench. They enter by the same door as anybody's."""

from collections.abc import Mapping, Sequence
from typing import Any

from qb_cluster.contracts import Granularity, Scheme, WeightRange
from qb_cluster.contracts.coverage import LAYER_KINDS, LayerKind, Scope


def weight_only(
    granularity: Granularity = "per_channel",
    group_size: int | None = None,
    symmetric: bool = True,
    narrow_range: bool | None = None,
    weight_range: WeightRange | None = None,
    layers: Mapping[str, str] | None = None,
    weights: Sequence[LayerKind] | None = None,
) -> Scheme:
    """Weights in integers, activations and arithmetic in float. Takes ``wN``.

    Symmetric groups have signed scales where neither ``narrow_range`` nor ``weight_range`` is
    given: whatever stores groups beside float activations stores those too.
    """
    if granularity == "per_group" and symmetric and narrow_range is None and weight_range is None:
        weight_range = "signed_max"
    options = _weights(
        granularity, group_size, symmetric, narrow_range, weight_range, layers, weights
    )
    return Scheme("weight_only", **options)


def dynamic(
    granularity: Granularity = "per_channel",
    group_size: int | None = None,
    symmetric: bool = True,
    narrow_range: bool | None = None,
    weight_range: WeightRange | None = None,
    symmetric_activations: bool = False,
    layers: Mapping[str, str] | None = None,
    weights: Sequence[LayerKind] | None = None,
    activations: Scope | None = None,
) -> Scheme:
    """Weights in integers; activation ranges found anew for each example. Takes ``wNaM``."""
    options = _weights(
        granularity, group_size, symmetric, narrow_range, weight_range, layers, weights
    )
    options |= {"symmetric_activations": symmetric_activations, "scope": activations}
    return Scheme("dynamic", "dynamic", **options)


def static(
    granularity: Granularity = "per_channel",
    group_size: int | None = None,
    symmetric: bool = True,
    narrow_range: bool | None = None,
    weight_range: WeightRange | None = None,
    symmetric_activations: bool = False,
    layers: Mapping[str, str] | None = None,
    weights: Sequence[LayerKind] | None = None,
    activations: Scope | None = None,
) -> Scheme:
    """Weights in integers; activation ranges fixed on calibration data. Takes ``wNaM``."""
    options = _weights(
        granularity, group_size, symmetric, narrow_range, weight_range, layers, weights
    )
    options |= {"symmetric_activations": symmetric_activations, "scope": activations}
    return Scheme("static", "static", **options)


def fp16() -> Scheme:
    """Weights and computation in IEEE half precision: 10 bits of fraction, largest 65,504."""
    return Scheme("fp16", number="fp16")


def bf16() -> Scheme:
    """Weights and computation in bfloat16: the range of float32, 7 bits of fraction."""
    return Scheme("bf16", number="bf16")


def fp8(format: str = "e4m3") -> Scheme:  # noqa: A002 - the word the field uses
    """Weights in 8-bit floats, computation in float32. ``e4m3`` (up to 448) or ``e5m2``."""
    match format:
        case "e4m3":
            return Scheme("fp8", number="fp8_e4m3")
        case "e5m2":
            return Scheme("fp8", number="fp8_e5m2")
    raise ValueError(f"fp8 comes as e4m3 or e5m2, not '{format}'")


def _weights(
    granularity: Granularity,
    group_size: int | None,
    symmetric: bool,
    narrow_range: bool | None,
    weight_range: WeightRange | None,
    layers: Mapping[str, str] | None,
    weights: Sequence[LayerKind] | None,
) -> dict[str, Any]:
    if narrow_range is None:
        narrow_range = weight_range != "signed_max"
    return {
        "granularity": granularity,
        "group_size": group_size,
        "symmetric": symmetric,
        "narrow_range": narrow_range,
        "weight_range": weight_range or "minmax",
        "layers": tuple((layers or {}).items()),
        "weights": LAYER_KINDS if weights is None else tuple(weights),
    }
