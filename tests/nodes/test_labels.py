from qb_cluster.nodes.accelerators import Accelerator
from qb_cluster.nodes.labels import is_key, is_value, node_labels

MACHINE = {
    "board": "Raspberry Pi 5 Model B Rev 1.0",
    "arch": "aarch64",
    "host": "Küche_1.local",
    "python": "3.11.2",
    "cpu_features": ["asimd", "asimddp"],
    "libraries": {"qb-cluster": "0.1.0"},
}


def gpu(index, name="NVIDIA H100 80GB HBM3"):
    return Accelerator(index, name, 85 * 10**9, "570.86", "9.0", f"GPU-{index}")


def test_a_board_is_described_in_words_that_ray_takes():
    labels = node_labels(MACHINE, [], {"tflite-runtime": "2.14.0", "torch": "2.13.0+cpu"})
    assert labels == {
        "qb/accelerator": "none",
        "qb/arch": "aarch64",
        "qb/board": "raspberry-pi-5-model-b-rev-1.0",
        "qb/cpu": "neon-dotprod",
        "qb/host": "kuche_1.local",
        "qb/python": "3.11.2",
        "qb/tflite-runtime": "2.14.0",
        "qb/torch": "2.13.0-cpu",
        "qb/version": "0.1.0",
    }


def test_what_is_unknown_has_no_label():
    unknown = MACHINE | {"board": None, "host": "", "arch": "", "cpu_features": []}
    labels = node_labels(unknown, [], {})
    assert set(labels) == {"qb/accelerator", "qb/python", "qb/version"}


def test_equal_gpus_are_named_once_and_unlike_ones_each():
    def accelerator(*gpus):
        return node_labels(MACHINE, gpus, {})["qb/accelerator"]

    assert accelerator(gpu(0), gpu(1)) == "nvidia-h100-80gb-hbm3"
    assert accelerator(gpu(0), gpu(1, "NVIDIA L4")) == "nvidia-h100-80gb-hbm3_nvidia-l4"


def test_labels_of_the_owner_win():
    labels = node_labels(MACHINE, [], {}, {"qb/board": "pi5", "place": "rack-3"})
    assert labels["qb/board"] == "pi5"
    assert labels["place"] == "rack-3"


def test_keys_and_values_are_those_of_ray():
    from ray._private.label_utils import validate_label_key, validate_label_value

    texts = [
        "a", "qb/board", "a.b-c/d_e", "-a/b", "a-/b", "a..b/c", "a_b/c", "a/b/c", "a/", "/a", "",
        "a b", "a" * 63, "a" * 64, "p" * 63 + "/a", "p" * 64 + "/a", "é",
        "p." * 126 + "p/a", "p." * 126 + "pp/a",
    ]  # fmt: skip
    for text in texts:
        assert is_key(text) <= (validate_label_key(text) is None), text
        try:
            validate_label_value(text)
        except ValueError:
            assert not is_value(text), text
        else:
            assert is_value(text) or text == "", text
