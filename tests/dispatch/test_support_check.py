"""What running an entry of the support matrix says of its claim."""

import pandas as pd
import pytest

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Ref
from qb_cluster.contracts.coverage import LAYER_KINDS
from qb_cluster.dispatch.support_check import KIND_MODELS, claims, kinds_spec
from qb_cluster.plan.support_matrix import support_matrix

HANDLES = {"pytorch": {"static": {"recurrent": "float", "attention": "integers"}}}


def claim(statuses):
    """The claim of static w8a8 on pytorch, which has no caveat, after these cells."""
    rows = [
        {"model": m, "status": s, "backend": "pytorch", "scheme": "static", "bits": "w8a8"}
        for m, s in statuses.items()
    ]
    entries = support_matrix(["pytorch"], [Ref("static", "static")])
    found = claims(entries, pd.DataFrame(rows), HANDLES)
    return next(each for each in found if str(each.entry.bits) == "w8a8")


@pytest.mark.parametrize(
    ("statuses", "holds"),
    [
        ({"digits-cnn": "ok", "recurrent": "ok"}, True),
        ({"digits-cnn": "ok", "recurrent": "partial"}, True),
        ({"digits-cnn": "ok", "recurrent": "failed"}, False),
        ({"digits-cnn": "ok", "attention": "partial"}, False),
        ({"digits-cnn": "partial", "recurrent": "partial"}, False),
    ],
)
def test_a_kind_that_a_backend_says_it_leaves_float_may_be_partial_and_no_other(statuses, holds):
    assert claim(statuses).holds == holds


def test_there_is_a_net_for_every_kind_that_the_digits_models_lack(load):
    assert set(KIND_MODELS["torch"].values()) == set(LAYER_KINDS) - {"linear", "conv"}
    made = [plugins.make("backend", Ref(name, name)) for name in ("pytorch", "tensorflow")]
    spec = load(kinds_spec("torch", made))
    assert [backend.ref.label for backend in spec.backends] == ["pytorch"]
    assert kinds_spec("keras", made) is None
