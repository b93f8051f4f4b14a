"""The zoo's nets in torch, bounded by auto_LiRPA on one thread or jax's own GPU.

    github.com/Verified-Intelligence/auto_LiRPA, 0.7, on PYTHONPATH, with torch

It gets the weights and images as numpy arrays, and gives the lower bounds of the
margins alone. It is built once for each batch size and keeps what it may between calls.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

METHODS = {
    "ibp": "IBP",
    "forward": "Forward",
    "crown_ibp": "CROWN-IBP",
    "crown": "CROWN",
    "alpha_crown": "alpha-CROWN",
}

# What it refuses: max pooling where it optimises lines of patches.
REFUSED = {("pooled", "alpha_crown")}

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import auto_LiRPA
        import torch
        from torch.nn import functional
except ImportError as error:
    missing: str | None = f"auto_LiRPA is not measured: {error}"
else:
    missing = None
    torch.set_num_threads(1)


def lower_margins(
    name: str, params: Mapping[str, Any], xs: Any, ys: Any, eps: float
) -> Callable[[str], Callable[[], Any]]:
    """The zoo's net `name` with these weights, ready for any method.

    Returns:
        `prepared(method) -> bounds`, and `bounds()` the lower ends, (batch, 9).
    """
    net = _net(name, {k: torch.tensor(np.asarray(v)) for k, v in params.items()})
    net = net.to(_device())
    images = torch.tensor(np.asarray(xs).transpose(0, 3, 1, 2).copy()).to(_device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bounded = auto_LiRPA.BoundedModule(net, images)
    rows = _differences(np.asarray(ys)).to(_device())

    def prepared(method: str) -> Callable[[], Any]:
        def bounds() -> Any:
            ball = auto_LiRPA.PerturbationLpNorm(norm=np.inf, eps=eps)
            optimizes = method == "alpha_crown"
            with torch.set_grad_enabled(optimizes):
                lower, _ = bounded.compute_bounds(
                    x=(auto_LiRPA.BoundedTensor(images, ball),),
                    C=rows,
                    method=METHODS[method],
                    bound_upper=False,
                )
            return lower.detach().cpu().numpy()

        return bounds

    return prepared


def matmul(x: Any) -> Callable[[], Any]:
    """The product of a matrix with itself, in torch."""
    matrix = torch.tensor(np.asarray(x)).to(_device())

    def product() -> Any:
        result = torch.matmul(matrix, matrix)
        if result.is_cuda:
            torch.cuda.synchronize()
        return result

    return product


def _device() -> Any:
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def _differences(ys: np.ndarray) -> Any:
    eye = torch.eye(10)
    rows = [eye[y][None] - torch.cat([eye[:y], eye[y + 1 :]]) for y in ys]
    return torch.stack(rows)


def _net(name: str, weights: dict[str, Any]) -> Any:
    """A module whose forward pass is the zoo's net."""
    forward = _FORWARDS[name]

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key, value in _in_torch_layout(name, weights).items():
                frozen = torch.nn.Parameter(value, requires_grad=False)
                self.register_parameter(key, frozen)

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Module()


def _in_torch_layout(name: str, weights: dict[str, Any]) -> dict[str, Any]:
    """Dense weights (out, in), kernels OIHW, and features before positions."""
    found = {}
    for key, value in weights.items():
        if value.ndim == 2:
            if key == "w0" and name in ("cnn", "pooled", "residual"):
                size = 7  # of the feature map that is flattened
                value = value.reshape(size, size, -1, value.shape[1])
                value = value.permute(2, 0, 1, 3).flatten(0, 2)
            value = value.T
        elif key.startswith("bias_"):
            value = value.reshape(-1)
        elif value.ndim == 4:
            value = value.permute(3, 2, 0, 1)
        found[key] = value.contiguous()
    return found


def _dense(net: Any, x: Any, i: int) -> Any:
    return functional.linear(x, getattr(net, f"w{i}"), getattr(net, f"b{i}"))


def _conv(net: Any, x: Any, name: str, stride: int, padding: int = 1) -> Any:
    kernel, bias = getattr(net, name), getattr(net, f"bias_{name}")
    return functional.conv2d(x, kernel, bias, stride=stride, padding=padding)


def _mlp(net: Any, x: Any) -> Any:
    x = torch.relu(_dense(net, x.flatten(1), 0))
    return _dense(net, torch.relu(_dense(net, x, 1)), 2)


def _cnn(net: Any, x: Any) -> Any:
    for name in "kl":
        x = torch.relu(_conv(net, x, name, 2))
    return _dense(net, torch.relu(_dense(net, x.flatten(1), 0)), 1)


def _pooled(net: Any, x: Any) -> Any:
    for name in "kl":
        x = functional.max_pool2d(torch.relu(_conv(net, x, name, 1)), 2)
    return _dense(net, x.flatten(1), 0)


def _residual(net: Any, x: Any) -> Any:
    x = torch.relu(_conv(net, x, "k", 2))
    inside = torch.relu(_conv(net, x, "l", 2))
    x = torch.relu(_conv(net, inside, "m", 1) + _conv(net, x, "n", 2, 0))
    return _dense(net, x.flatten(1), 0)


def _normalized(x: Any) -> Any:
    centered = x - x.mean(-1, keepdim=True)
    variance = (centered * centered).mean(-1, keepdim=True)
    return centered / torch.sqrt(variance + 1e-5)


def _transformer(net: Any, x: Any) -> Any:
    x = _dense(net, x.reshape(-1, 14, 56), 0)
    heads = _dense(net, _normalized(x), 1)

    def split(i: int) -> Any:
        part = heads[:, :, 32 * i : 32 * (i + 1)]
        return part.reshape(-1, 14, 2, 16).permute(0, 2, 1, 3)

    q, k, v = map(split, range(3))
    scores = torch.matmul(q, k.transpose(-1, -2)) / 4
    mixed = torch.matmul(functional.softmax(scores, dim=-1), v)
    mixed = mixed.permute(0, 2, 1, 3).reshape(-1, 14, 32)
    x = x + _dense(net, mixed, 2)
    x = x + _dense(net, torch.relu(_dense(net, _normalized(x), 3)), 4)
    return _dense(net, x.mean(1), 5)


def _lstm(net: Any, x: Any) -> Any:
    x = x.reshape(-1, 7, 112)
    hidden = cell = None
    for t in range(7):
        gates = functional.linear(x[:, t], net.w0, net.b1)
        if hidden is not None:
            gates = gates + functional.linear(hidden, net.w1)
        i, f, g, o = (gates[:, 32 * n : 32 * (n + 1)] for n in range(4))
        fresh = torch.sigmoid(i) * torch.tanh(g)
        cell = fresh if cell is None else torch.sigmoid(f) * cell + fresh
        hidden = torch.sigmoid(o) * torch.tanh(cell)
    return _dense(net, hidden, 2)


_FORWARDS: dict[str, Callable[[Any, Any], Any]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "pooled": _pooled,
    "residual": _residual,
    "transformer": _transformer,
    "lstm": _lstm,
}
