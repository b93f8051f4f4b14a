"""TracIn by captum on one thread, of the benchmark's nets in torch.

    captum 0.9.0 from PyPI on PYTHONPATH, with torch for CPUs

It gets the checkpoints and images as numpy arrays and keeps the checkpoints in memory:
no time goes into reading files. Its whole-model scores take per-example gradients of a
batch at once where a layer is linear or a convolution (`sample_wise_grads_per_batch`),
the faster of its two ways; batches are as large as was fastest.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from captum.influence import TracInCP, TracInCPFast
        from torch.nn import functional
except ImportError as error:
    missing: str | None = f"captum is not measured: {error}"
else:
    missing = None
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="captum")

Images = tuple[Any, Any]
Scores = Callable[[], np.ndarray]


def all_layers(
    name: str,
    params: Mapping[str, Any],
    rates: Any,
    train: Images,
    test: Images,
    batch_size: int = 200,
) -> dict[str, Scores]:
    """TracInCP of every layer of the net `name`, at these checkpoints.

    Returns:
        `tracin()`, (n_test, n_train); `self_influence()`, (n_train,); and
        `aggregate()`, (n_train,), on the sum of the test losses.
    """
    tracer = TracInCP(
        **_setting(name, params, rates, train, batch_size),
        sample_wise_grads_per_batch=True,
    )
    asked = _tensors(test)
    return {
        "tracin": lambda: tracer.influence(asked).numpy(),
        "self_influence": lambda: tracer.self_influence().numpy(),
        "aggregate": lambda: tracer.influence(asked, aggregate=True).numpy()[0],
    }


def last_layer(
    name: str,
    params: Mapping[str, Any],
    rates: Any,
    train: Images,
    test: Images,
    batch_size: int = 1000,
) -> dict[str, Scores]:
    """TracInCPFast: of the last layer's weight, without its bias; as `all_layers`."""
    setting = _setting(name, params, rates, train, batch_size)
    *_, last = setting["model"].children()
    tracer = TracInCPFast(**setting, final_fc_layer=last)
    asked = _tensors(test)
    return {
        "tracin": lambda: tracer.influence(asked).numpy(),
        "self_influence": lambda: tracer.self_influence().numpy(),
    }


def _setting(
    name: str, params: Mapping[str, Any], rates: Any, train: Images, batch_size: int
) -> dict[str, Any]:
    """What both of captum's scores are made with."""
    weights = {k: torch.tensor(np.asarray(v)) for k, v in params.items()}
    rates = np.asarray(rates)
    checkpoints = []
    for k, rate in enumerate(rates):
        one = {key: value[k] for key, value in weights.items()}
        checkpoints.append((_in_torch_layout(one), float(rate)))

    def load(model: Any, checkpoint: tuple[dict[str, Any], float]) -> float:
        model.load_state_dict(checkpoint[0])
        return checkpoint[1]

    return {
        "model": _net(name),
        "train_dataset": torch.utils.data.TensorDataset(*_tensors(train)),
        "checkpoints": checkpoints,
        "checkpoints_load_func": load,
        "loss_fn": torch.nn.CrossEntropyLoss(reduction="sum"),
        "batch_size": batch_size,
    }


def _tensors(images: Images) -> tuple[Any, Any]:
    x, y = map(np.asarray, images)
    return torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(y).long()


def _in_torch_layout(params: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a module: dense weights (out, in), kernels OIHW."""
    state = {}
    for key, value in params.items():
        kind, layer = key[0], key[1:]
        if kind == "w" and "k1" in params:  # Torch flattens features before places.
            value = value.reshape(7, 7, 32, 10).permute(2, 0, 1, 3).reshape(-1, 10)
        turned = {"k": (3, 2, 0, 1), "w": (1, 0), "b": (0,)}[kind]
        entry = f"{layer}.bias" if kind == "b" else f"{layer}.weight"
        state[entry] = value.permute(turned).contiguous()
    return state


def _net(name: str) -> Any:
    """A module with layers 0, 1, ... whose forward pass is the benchmark's net."""
    make, forward = _NETS[name]

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, layer in enumerate(make()):
                self.add_module(str(i), layer)

        def forward(self, x: Any) -> Any:
            return forward(x, *self.children())

    return Module()


def _dense(*widths: tuple[int, int]) -> Callable[[], list[Any]]:
    return lambda: [torch.nn.Linear(*pair) for pair in widths]


def _mlp(x: Any, first: Any, second: Any, last: Any) -> Any:
    return last(torch.relu(second(torch.relu(first(x.flatten(1))))))


def _convolutions() -> list[Any]:
    kernels = [torch.nn.Conv2d(n, m, 3, padding=1) for n, m in ((1, 16), (16, 32))]
    return [*kernels, torch.nn.Linear(7 * 7 * 32, 10)]


def _cnn(x: Any, first: Any, second: Any, last: Any) -> Any:
    for layer in (first, second):
        x = functional.max_pool2d(torch.relu(layer(x)), 2)
    return last(x.flatten(1))


def _normalized(x: Any) -> Any:
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-5)


def _transformer(
    x: Any, first: Any, qkv: Any, mix: Any, up: Any, down: Any, last: Any
) -> Any:
    x = first(x.reshape(-1, 14, 56))
    heads = qkv(_normalized(x)).reshape(-1, 14, 3, 2, 16)
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    shares = functional.softmax(q @ k.transpose(-1, -2) / 4, dim=-1)
    x = x + mix((shares @ v).transpose(1, 2).reshape(-1, 14, 32))
    x = x + down(torch.relu(up(_normalized(x))))
    return last(x.mean(1))


_NETS: dict[str, tuple[Callable[[], list[Any]], Callable[..., Any]]] = {
    "MLP": (_dense((784, 256), (256, 128), (128, 10)), _mlp),
    "CNN": (_convolutions, _cnn),
    "transformer": (
        _dense((56, 32), (32, 96), (32, 32), (32, 64), (64, 32), (32, 10)),
        _transformer,
    ),
}
