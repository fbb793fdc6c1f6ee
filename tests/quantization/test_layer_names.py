import numpy as np
import pytest

from qb_cluster.quantization.layer_names import LayerWeight, StoredWeight, fingerprint, names_of

RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def known(name, values, axis=0):
    return LayerWeight((name,), values, axis, fingerprint(values))


def stored(values, *hints, tensor="w", axis=0):
    return StoredWeight(tensor, values, axis, hints)


def test_a_fingerprint_is_that_of_the_values_in_whatever_order_and_shape():
    values = random(3, 5, 7)
    values[0, 0, 0] = 0
    print_ = fingerprint(values)
    assert fingerprint(values.transpose(2, 0, 1)) == fingerprint(values.reshape(7, 15)) == print_
    assert fingerprint(RNG.permutation(values.ravel())) == print_
    parts = sum(map(fingerprint, np.split(values, 3)))
    assert parts % 2**64 == print_
    values[0, 0, 0] = -0.0
    assert fingerprint(values) == print_
    values[2, 4, 6] = np.nextafter(values[2, 4, 6], np.float32(9))
    assert fingerprint(values) != print_


def test_a_weight_belongs_to_the_layer_with_its_values_whatever_the_file_suggests():
    one, other = random(4, 6), random(4, 6)
    model = [known("one", one), known("other", other)]
    found = names_of(model, [stored(other.T, "one", tensor="a"), stored(one, tensor="b")])
    assert found == [("other",), ("one",)]


def test_layers_with_equal_weights_are_told_apart_by_hints_and_then_by_order():
    same = random(4, 4)
    model = [known(name, same) for name in ("a", "b", "c")]
    assert names_of(model, [stored(same)] * 3) == [("a",), ("b",), ("c",)]
    assert names_of(model, [stored(same), stored(same, "a"), stored(same)]) == [
        *(("b",), ("a",), ("c",))
    ]
    inside = [known("x.out", same), known("y.out", same)]
    assert names_of(inside, [stored(same, "y"), stored(same, "x")]) == [("y.out",), ("x.out",)]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_with_factors_folded_in_is_the_hint_that_is_the_same_up_to_them(axis):
    one, other = random(6, 6), random(6, 6)
    model = [known("one", one, axis), known("other", other, axis)]
    factors = np.array([0.5, -2, 3, 1, 0.1, 7], np.float32)
    folded = np.moveaxis(np.moveaxis(other, axis, 0) * factors[:, None], 0, axis)
    assert names_of(model, [stored(folded, "one", "other", axis=axis)]) == [("other",)]
    # What is like none of them may be any of those that are left.
    assert names_of(model, [stored(random(6, 6), "one", "other")]) == [("one", "other")]
    both = [stored(one, tensor="a"), stored(random(6, 6), "one", "other", tensor="b")]
    assert names_of(model, both) == [("one",), ("other",)]


def test_a_weight_that_nothing_is_known_of_has_no_name():
    assert names_of([known("one", random(2, 2))], [stored(random(3, 3))]) == [()]
