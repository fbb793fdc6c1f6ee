"""The schemes that come with QuantBench. They enter by the same door as anybody's."""

from qb_cluster.contracts import Granularity, Scheme


def weight_only(granularity: Granularity = "per_channel") -> Scheme:
    """Weights in integers, activations and arithmetic in float. Takes ``wN``."""
    return Scheme("weight_only", activations="none", granularity=granularity)


def dynamic(granularity: Granularity = "per_channel") -> Scheme:
    """Weights in integers; activation ranges found anew for each example. Takes ``wNaM``."""
    return Scheme("dynamic", activations="dynamic", granularity=granularity)


def static(granularity: Granularity = "per_channel") -> Scheme:
    """Weights in integers; activation ranges fixed on calibration data. Takes ``wNaM``."""
    return Scheme("static", activations="static", granularity=granularity)
