"""What does reusing the activations before a layer save, when each layer is quantized in turn?

Run it alone: ``make bench``. A net of ResNet-18's size on 256 images of 3×32×32, weights in 4 bits,
one thread: the sensitivity of its 21 layers, alone and all but one, once with reuse and once with
the whole model run for each. The results must be identical, and reuse must save a third.
"""

import sys
import time

import torch
from simulated import images, resnet18

from qb_cluster.contracts import Bits, Quantization, Scheme
from qb_pytorch.sensitivity import layer_sensitivity

LEAST = 1.5


def main() -> int:
    """Print the table; the exit code says whether the results are the same and the limit held."""
    torch.set_num_threads(1)
    net, inputs = resnet18(), images(256, 32)
    asked = Quantization(Scheme("weight_only"), Bits(4), "simulated")
    one = {name: array[:2] for name, array in inputs.items()}
    layer_sensitivity(lambda: net, asked, None, one)  # warm: imports, and the expected SQNRs
    seconds, rows = {}, {}
    for reuse in (True, False):
        began = time.perf_counter()
        rows[reuse] = layer_sensitivity(lambda: net, asked, None, inputs, reuse=reuse)
        seconds[reuse] = time.perf_counter() - began
    ratio = seconds[False] / seconds[True]
    same = rows[True] == rows[False]
    print(f"{len(rows[True])} runs over 256 images of 3×32×32, one thread\n")
    print(f"whole model each time  {seconds[False]:6.2f} s")
    print(f"prefix reused          {seconds[True]:6.2f} s")
    print(f"saved                  {ratio:6.2f} times faster, at least {LEAST:.2f}")
    print(f"results                {'identical' if same else 'DIFFERENT'}")
    return 0 if same and ratio >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
