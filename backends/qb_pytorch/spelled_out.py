"""Layers that hold several products, written as the products they are.

``torch.nn.MultiheadAttention`` and the recurrent layers read their weights without calling a
layer. Written out, each product is a ``torch.nn.Linear`` whose weight and input can be rounded
like any other's, and a model gives the same numbers whichever way it was written.
"""

import math
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional


class AttentionProjection(nn.Linear):
    """A projection of an attention layer."""


class RecurrentProjection(nn.Linear):
    """The products of a recurrent layer with its inputs, or with its state."""


def spell_out(module: nn.Module, *, recurrent: bool = True) -> nn.Module:
    """Replace attention and recurrent layers in place; weights are shared with the original.

    Attention's projections are called ``in_proj.q``, ``in_proj.k``, ``in_proj.v`` and
    ``out_proj``, those of recurrent layers as their weights: ``weight_ih_l0``, ``weight_hh_l0``,
    … What has extra keys (``add_bias_kv``, ``add_zero_attn``) or projects its state
    (``proj_size``) stays as it is.

    Args:
        module: in evaluation mode.
        recurrent: whether recurrent layers are replaced too; one step after the other takes
            several times as long as torch's own.

    Returns:
        The module, or what takes its place.
    """
    if (own := _written(module, recurrent=recurrent)) is not None:
        return own
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.TransformerEncoder):
            child.use_nested_tensor = False  # which is for fused layers
        if name and (written := _written(child, recurrent=recurrent)) is not None:
            module.set_submodule(name, written)
    return module


def _written(layer: nn.Module, *, recurrent: bool) -> nn.Module | None:
    # Subclasses compute what they like.
    if type(layer) is nn.MultiheadAttention and layer.bias_k is None and not layer.add_zero_attn:
        return _Attention(layer).eval()
    if recurrent and type(layer) in _STEPS and not getattr(layer, "proj_size", 0):
        return _Recurrent(layer).eval()
    return None


class _Attention(nn.Module):
    """``torch.nn.MultiheadAttention``, examples along axis 0 within."""

    in_proj_bias: Final = None
    """Torch's encoder layers ask for it, and do not fuse a layer without."""

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.batch_first = layer.num_heads, layer.batch_first
        if layer.in_proj_weight is None:
            weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
        else:
            weights = list(layer.in_proj_weight.detach().chunk(3))
        biases: list[Any] = [None] * 3
        if layer.in_proj_bias is not None:
            biases = list(layer.in_proj_bias.detach().chunk(3))
        parts = zip("qkv", weights, biases, strict=True)
        self.in_proj = nn.ModuleDict(
            {name: _linear(AttentionProjection, weight, bias) for name, weight, bias in parts}
        )
        output = layer.out_proj
        self.out_proj = _linear(AttentionProjection, output.weight, output.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        del is_causal  # a hint, beside the mask that says the same
        is_batch = query.ndim == 3
        inputs = [self._with_examples_first(tensor) for tensor in (query, key, value)]
        q, k, v = (
            self.in_proj[name](tensor).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name, tensor in zip("qkv", inputs, strict=True)
        )
        masks = self._masks(attn_mask, key_padding_mask, len(q), is_batch=is_batch)
        mask = sum(masks[1:], masks[0]) if masks else None
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            weights = (scores if mask is None else scores + mask).softmax(-1)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batch else weights[0]
        else:
            found = functional.scaled_dot_product_attention(q, k, v, mask)
        output = self.out_proj(found.transpose(1, 2).flatten(-2))
        if not is_batch:
            output = output[0]
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, weights

    def _with_examples_first(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 2:
            return tensor.unsqueeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _masks(
        self,
        attention: torch.Tensor | None,
        padding: torch.Tensor | None,
        count: int,
        *,
        is_batch: bool,
    ) -> list[torch.Tensor]:
        """Give what is added to the scores, shape (examples, heads, queries, keys) or less."""
        masks = []
        if attention is not None:
            mask = _additive(attention)
            masks.append(mask if mask.ndim == 2 else mask.unflatten(0, (count, self.num_heads)))
        if padding is not None:
            mask = _additive(padding if is_batch else padding.unsqueeze(0))
            masks.append(mask[:, None, None, :])
        return masks


def _additive(mask: torch.Tensor) -> torch.Tensor:
    """Turn a mask whose true entries are left out into one that is added."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask, float("-inf"))


State = tuple[torch.Tensor, ...]
"""The hidden state, and the cell state of an LSTM; each of shape (examples, hidden)."""


class _Recurrent(nn.Module):
    """``torch.nn.RNN``, ``LSTM`` or ``GRU``, one step after the other."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.batch_first, self.num_layers = layer.batch_first, layer.num_layers
        self.hidden_size = layer.hidden_size
        self.endings = ("", "_reverse") if layer.bidirectional else ("",)
        self.step, self.states = _STEPS[type(layer)]
        self.nonlinearity = getattr(layer, "nonlinearity", "tanh")
        for number in range(layer.num_layers):
            for ending in self.endings:
                for kind in ("ih", "hh"):
                    tail = f"{kind}_l{number}{ending}"
                    bias = getattr(layer, f"bias_{tail}") if layer.bias else None
                    weight = getattr(layer, f"weight_{tail}")
                    self.add_module(f"weight_{tail}", _linear(RecurrentProjection, weight, bias))

    def flatten_parameters(self) -> None:
        """Do nothing: there is one parameter a product."""

    def forward(self, input: torch.Tensor, hx: Any = None) -> tuple[torch.Tensor, Any]:  # noqa: A002 torch's name
        if isinstance(input, nn.utils.rnn.PackedSequence):
            raise NotImplementedError("packed sequences are not simulated; pad them")
        is_batch = input.ndim == 3
        steps = input if is_batch else input.unsqueeze(0 if self.batch_first else 1)
        steps = steps.transpose(0, 1) if self.batch_first else steps
        starts = self._starts(hx, steps, is_batch=is_batch)
        last: list[State] = []
        for number in range(self.num_layers):
            outputs = []
            for ending in self.endings:
                one, state = self._direction(steps, f"l{number}{ending}", starts[len(last)])
                outputs.append(one)
                last.append(state)
            steps = torch.cat(outputs, -1)
        ends = [torch.stack(states) for states in zip(*last, strict=True)]
        output = steps.transpose(0, 1) if self.batch_first else steps
        if not is_batch:
            output = output.squeeze(0 if self.batch_first else 1)
            ends = [end.squeeze(1) for end in ends]
        return output, tuple(ends) if self.states > 1 else ends[0]

    def _starts(self, given: Any, steps: torch.Tensor, *, is_batch: bool) -> list[State]:
        count = self.num_layers * len(self.endings)
        if given is None:
            zeros = steps.new_zeros(steps.shape[1], self.hidden_size)
            return [(zeros,) * self.states] * count
        states = given if self.states > 1 else (given,)
        states = [state if is_batch else state.unsqueeze(1) for state in states]
        return list(zip(*states, strict=True))

    def _direction(
        self, steps: torch.Tensor, tail: str, state: State
    ) -> tuple[torch.Tensor, State]:
        of_input = self.get_submodule(f"weight_ih_{tail}")
        of_state = self.get_submodule(f"weight_hh_{tail}")
        # All steps at once: an example's inputs have one range.
        given = of_input(steps.transpose(0, 1)).unbind(1)
        outputs = []
        for one in reversed(given) if tail.endswith("_reverse") else given:
            state = self.step(one, of_state(state[0]), state, self.nonlinearity)
            outputs.append(state[0])
        if tail.endswith("_reverse"):
            outputs.reverse()
        return torch.stack(outputs), state


def _rnn(one: torch.Tensor, own: torch.Tensor, _: State, nonlinearity: str) -> State:
    return ((torch.relu if nonlinearity == "relu" else torch.tanh)(one + own),)


def _lstm(one: torch.Tensor, own: torch.Tensor, state: State, _: str) -> State:
    enter, forget, cell, leave = (one + own).chunk(4, -1)
    kept = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(cell)
    return torch.sigmoid(leave) * torch.tanh(kept), kept


def _gru(one: torch.Tensor, own: torch.Tensor, state: State, _: str) -> State:
    (reset, update, new), (own_reset, own_update, own_new) = one.chunk(3, -1), own.chunk(3, -1)
    kept = torch.sigmoid(update + own_update)
    found = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
    return ((1 - kept) * found + kept * state[0],)


_STEPS: Final[dict[type, tuple[Any, int]]] = {
    nn.RNN: (_rnn, 1),
    nn.LSTM: (_lstm, 2),
    nn.GRU: (_gru, 1),
}
"""What a step computes, and how many states there are; formulas as in torch's documentation."""


def _linear(kind: type[nn.Linear], weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
