import json
from dataclasses import asdict

import pytest

from qb_cluster.contracts import ArtifactFacts, Bits

FULL = ArtifactFacts(
    parameters=10,
    parameter_bytes=12,
    quantized_parameters=8,
    notes=("a note", "another"),
    integer_mac_share=0.5,
    fallback_ops=("Conv",),
    integer_layer_mac_share=0.75,
    coverage={"linear": (8, 8), "conv": (0, 2)},
    scope="layers",
    effective_bits=Bits(7, 7),
)


@pytest.mark.parametrize("facts", [FULL, ArtifactFacts(10, None, 0)])
def test_facts_come_back_from_json_as_they_went(facts):
    assert ArtifactFacts.from_plain(json.loads(json.dumps(asdict(facts)))) == facts


def test_facts_of_another_version_are_refused():
    with pytest.raises(TypeError, match="of_the_future"):
        ArtifactFacts.from_plain(asdict(FULL) | {"of_the_future": 1})
