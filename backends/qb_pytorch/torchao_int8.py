"""Native int8 by torchao's ``quantize_``: weight-only and dynamic, Linear layers only."""

import torch

from qb_cluster.contracts import Artifact, Quantization
from qb_pytorch import checkpoint, modules
from qb_pytorch.third_party import quiet


def quantize(module: torch.nn.Module, quantization: Quantization) -> Artifact:
    """Quantize to int8 weights, and to int8 activations where the scheme is dynamic.

    Activation ranges are affine, as everywhere in QuantBench: torchao's default, symmetric,
    leaves half of the levels unused behind a ReLU.

    Args:
        module: a copy of the float model, changed in place.
        quantization: ``weight_only`` w8 or ``dynamic`` w8a8.
    """
    with quiet():
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            MappingType,
            PerRow,
            PerTensor,
            quantize_,
        )
        from torchao.utils import should_reduce_range

    per_channel = quantization.scheme.granularity == "per_channel"
    weights = PerRow() if per_channel else PerTensor()
    # ``set_inductor_config`` would change settings of the whole process, for a compiler that
    # is not used here.
    notes: tuple[str, ...] = ()
    if quantization.scheme.activations == "none":
        config = Int8WeightOnlyConfig(granularity=weights, set_inductor_config=False)
    else:
        reduced = should_reduce_range(torch.device("cpu"))
        config = Int8DynamicActivationInt8WeightConfig(
            granularity=[PerRow(), weights],
            act_mapping_type=MappingType.ASYMMETRIC,
            set_inductor_config=False,
            reduce_range=reduced,
        )
        notes = ("7-bit weights and activations: this CPU has no VNNI",) if reduced else ()
    parameters = modules.parameter_count(module)
    quantize_(module, config)
    return checkpoint.store(module, parameters, checkpoint.TORCHAO_FORMAT, notes)
