"""What alone follows a layer belongs to its output, where runtimes fuse it."""

import pytest
import torch
from torch import nn

from qb_pytorch.following import Output, outputs

pytestmark = pytest.mark.frameworks

INFINITY = float("inf")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.normed, self.in_place, self.read_twice = (
            nn.Conv2d(1 if i == 0 else 4, 4, 1) for i in range(3)
        )
        self.norm, self.relu, self.relu6 = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.ReLU6()
        self.six, self.above, self.between, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.tied = nn.Linear(4, 4)

    def forward(self, image):
        values = torch.relu(self.norm(self.normed(image)))
        values = self.relu(self.in_place(values))
        both = self.read_twice(values)
        values = (both + nn.functional.relu(both)).mean((2, 3))
        values = self.relu6(self.six(values))
        values = self.above(values).clamp(min=0)
        values = torch.clamp(self.between(values), -1, 1)
        values = torch.relu(self.tied(torch.relu(self.tied(values))))
        return self.last(values)


@pytest.mark.parametrize(
    ("layer", "output"),
    [
        ("normed", Output("norm", (0.0, INFINITY))),
        ("in_place", Output("in_place", (0.0, INFINITY))),
        ("read_twice", Output("read_twice", None)),
        ("six", Output("six", (0.0, 6.0))),
        ("above", Output("above", (0.0, INFINITY))),
        ("between", Output("between", (-1.0, 1.0))),
        ("tied", Output("tied", None)),
        ("last", Output("last", None)),
    ],
)
def test_the_output_of_a_layer_is_where_what_follows_has_been_fused(layer, output):
    torch.manual_seed(0)
    net = Net().eval()
    names = [name for name, one in net.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    assert outputs(net, names, {"image": torch.randn(1, 1, 3, 3)})[layer] == output
