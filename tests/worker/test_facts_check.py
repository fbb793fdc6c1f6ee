from dataclasses import replace

import numpy as np
import pytest
import worker_stubs

from qb_cluster.contracts import Artifact, ArtifactFacts
from qb_cluster.errors import PlugInError
from qb_cluster.worker.facts_check import check_facts

FLOAT = Artifact(bytes(40), "bin", ArtifactFacts(10, 40, 0))
FACTS = ArtifactFacts(
    parameters=10,
    parameter_bytes=12,
    quantized_parameters=8,
    integer_mac_share=0.5,
    integer_layer_mac_share=1 + 1e-12,
    coverage={"linear": (8, 8), "conv": (0, 2)},
    scope="layers",
)


def check(data=bytes(20), *, baseline=FLOAT, simulated=False, **facts):
    artifact = Artifact(data, "bin", replace(FACTS, **facts))
    check_facts(worker_stubs.Stub(), artifact, baseline, simulated=simulated)


def test_what_can_be_is_believed():
    check()
    check(integer_mac_share=None, integer_layer_mac_share=None, coverage=None, scope=None)
    check(
        parameters=np.int64(10), quantized_parameters=np.int64(8), integer_mac_share=np.float32(1)
    )
    check(parameter_bytes=None, simulated=True)
    check(
        FLOAT.data, quantized_parameters=0, coverage={"linear": (0, 8)}
    )  # not applied, and says so
    check_facts(worker_stubs.Stub(), FLOAT, None, simulated=False)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"parameters": -1}, "parameters is -1"),
        ({"parameters": 10.5}, "parameters is 10.5"),
        ({"parameters": True}, "parameters is True"),
        ({"quantized_parameters": "8"}, "quantized_parameters is '8'"),
        ({"quantized_parameters": 11}, "11 of 10 parameters are quantized"),
        ({"parameter_bytes": -0.001}, "parameter_bytes is -0.001"),
        ({"parameter_bytes": 21}, "parameter_bytes is 21, more than the 20 of the artifact"),
        ({"parameter_bytes": None}, "parameter_bytes is None, and it is not simulated"),
        ({"integer_mac_share": 10}, "integer_mac_share is 10, and shares are from 0 to 1"),
        ({"integer_layer_mac_share": -0.1}, "integer_layer_mac_share is -0.1"),
        ({"integer_mac_share": float("nan")}, "integer_mac_share is nan"),
        ({"integer_mac_share": "0.5"}, "integer_mac_share is '0.5'"),
        ({"notes": "a note"}, "notes is 'a note', and no tuple of texts"),
        ({"fallback_ops": (1,)}, r"fallback_ops is \(1,\), and no tuple of texts"),
        ({"scope": "most"}, "scope is 'most', and none of inputs, layers, all"),
        ({"coverage": {"linears": (1, 2)}}, "coverage has the kind 'linears'"),
        ({"coverage": {"linear": (3, 2)}}, "coverage says that 3 of 2 linear parameters"),
        ({"coverage": {"linear": (3, 20)}}, "coverage is of 20 parameters, and the model has 10"),
    ],
)
def test_a_fact_outside_its_bounds_is_named_with_the_backend(facts, said):
    with pytest.raises(PlugInError, match=f"backend 'stub' says of its artifact.*{said}"):
        check(**facts)


def test_a_float_artifact_has_no_quantized_parameters():
    with pytest.raises(PlugInError, match="quantized_parameters is 8 of the float model"):
        check(baseline=None)


def test_what_is_quantized_is_not_the_float_artifact_byte_for_byte():
    with pytest.raises(PlugInError, match="8, and it is the float artifact byte for byte"):
        check(FLOAT.data)
