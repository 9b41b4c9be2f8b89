"""Twelve small networks in the manner of public ones, in SpikingJelly's layers: what ``accelerate`` is held against.

Each is a function of a width, and gives a network in multi-step mode and an input. Weights of linear layers are
multiples of 1/16, so that their products with spikes are exact in whatever order they are summed.
"""

from collections.abc import Callable

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor]


def lif(**options: object) -> nn.Module:
    return neuron.LIFNode(surrogate_function=surrogate.ATan(), **options)


def spikes(*shape: int, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape) < rate).float()


def mlp(width: int = 4) -> Made:
    """The MLP of SpikingJelly's tutorials."""
    net = nn.Sequential(layer.Linear(16 * width, 16 * width), lif(), layer.Linear(16 * width, 10), lif())
    return net, spikes(20, 8, 16 * width)


def csnn(width: int = 4) -> Made:
    """Convolutions, batch norm and IF neurons: the Fashion-MNIST network of SpikingJelly's tutorials."""
    block = [
        part
        for inputs in (1, width)
        for part in (
            layer.Conv2d(inputs, width, 3, padding=1, bias=False), layer.BatchNorm2d(width),
            neuron.IFNode(surrogate_function=surrogate.ATan()), layer.MaxPool2d(2, 2),
        )
    ]  # fmt: skip
    tail = [layer.Flatten(), layer.Linear(width * 16, 10, bias=False), neuron.IFNode()]
    return nn.Sequential(*block, *tail), torch.rand(4, 8, 1, 16, 16)


class Residual(nn.Module):
    """A block with a shortcut; ``sew`` adds spikes, else currents are added before the last neuron."""

    def __init__(self, width: int, sew: bool, **options: object) -> None:
        super().__init__()
        self.conv1, self.bn1 = layer.Conv2d(width, width, 3, padding=1), layer.BatchNorm2d(width)
        self.conv2, self.bn2 = layer.Conv2d(width, width, 3, padding=1), layer.BatchNorm2d(width)
        self.sn1, self.sn2, self.sew = lif(**options), lif(**options), sew

    def forward(self, x: Tensor) -> Tensor:
        current = self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))
        if self.sew:
            return self.sn2(current) + x
        return self.sn2(current + x)


def sew_resnet(width: int = 4) -> Made:
    """W. Fang et al., "Deep residual learning in spiking neural networks", NeurIPS 2021."""
    return Residual(width, sew=True, detach_reset=True), spikes(4, 4, width, 8, 8)


def ms_resnet(width: int = 4) -> Made:
    """Shortcuts between membrane inputs: Y. Hu et al., "Advancing spiking neural networks toward deep residual..."."""
    return nn.Sequential(Residual(width, False, v_reset=None), Residual(width, False)), torch.randn(4, 4, width, 8, 8)


class Attention(nn.Module):
    """Spiking self-attention of Z. Zhou et al., "Spikformer", ICLR 2023."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(layer.Linear(width, width) for _ in range(4))
        self.nodes = nn.ModuleList(lif() for _ in range(3))
        self.attention = lif(v_threshold=0.5)
        self.last = lif()

    def forward(self, x: Tensor) -> Tensor:  # [T, B, tokens, width]
        q, k, v = (node(part(x)) for node, part in zip(self.nodes, self.parts, strict=False))
        mixed = self.attention((q @ k.transpose(-2, -1)) @ v * 0.125)
        return self.last(self.parts[3](mixed)) + x


def spikformer(width: int = 4) -> Made:
    return Attention(8 * width), spikes(4, 4, 16, 8 * width)


def dvs_gesture(width: int = 4) -> Made:
    """PLIF neurons, dropout and a vote: W. Fang et al., ICCV 2021."""

    def plif() -> nn.Module:
        return neuron.ParametricLIFNode(surrogate_function=surrogate.ATan(), detach_reset=True)

    net = nn.Sequential(
        layer.Conv2d(2, width, 3, padding=1, bias=False), layer.BatchNorm2d(width), plif(), layer.MaxPool2d(2, 2),
        layer.Flatten(), layer.Dropout(0.5), layer.Linear(width * 64, 32), plif(),
        layer.Dropout(0.5), layer.Linear(32, 20), plif(), layer.VotingLayer(2),
    )  # fmt: skip
    return net.eval(), spikes(6, 4, 2, 16, 16)


def stbp(width: int = 4) -> Made:
    """Batch norm, soft reset and a current that does not decay, as in H. Zheng et al., AAAI 2021."""
    net = nn.Sequential(
        layer.Conv2d(2, width, 3, padding=1), layer.BatchNorm2d(width),
        lif(v_reset=None, decay_input=False, tau=4 / 3), layer.AvgPool2d(2),
        layer.Conv2d(width, width, 3, padding=1), layer.BatchNorm2d(width),
        lif(v_reset=None, decay_input=False, tau=4 / 3),
    )  # fmt: skip
    return net, torch.randn(4, 4, 2, 8, 8)


def converted_ann(width: int = 4) -> Made:
    """IF neurons with a soft reset, as a converted ANN has them."""
    net = nn.Sequential(
        layer.Linear(16 * width, 16 * width), neuron.IFNode(v_reset=None), layer.Linear(16 * width, 10),
        neuron.IFNode(v_reset=None),
    )  # fmt: skip
    return net, spikes(32, 8, 16 * width)


def recurrent(width: int = 4) -> Made:
    """A recurrent layer in a container."""
    n = 16 * width
    inner = nn.Sequential(nn.Linear(n, n), lif())
    net = nn.Sequential(layer.LinearRecurrentContainer(inner, n, n), layer.Linear(n, 10), lif())
    return net, spikes(20, 8, n, rate=0.1)


def element_wise(width: int = 4) -> Made:
    """A container that goes on calling its neuron step by step."""
    inner = layer.ElementWiseRecurrentContainer(lif(), lambda x, y: x + y)
    return nn.Sequential(layer.Linear(16 * width, 16 * width), inner, layer.Linear(16 * width, 4), lif()), spikes(
        10, 8, 16 * width
    )


def read_out(width: int = 4) -> Made:
    """Regression: the last neurons never fire, and their potential is the output."""

    class Potential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.fire = layer.Linear(16 * width, 16 * width), lif()
            self.last, self.integrate = layer.Linear(16 * width, 1), lif(v_threshold=float("inf"))

        def forward(self, x: Tensor) -> Tensor:
            self.integrate(self.last(self.fire(self.hidden(x))))
            v: Tensor = self.integrate.v
            return v

    return Potential(), spikes(20, 8, 16 * width)


def mixed(width: int = 4) -> Made:
    """Neurons that accelerate keeps, between others that it takes."""
    n = 16 * width
    net = nn.Sequential(
        layer.Linear(n, n), lif(), layer.Linear(n, n), neuron.QIFNode(surrogate_function=surrogate.ATan()),
        layer.Linear(n, n), neuron.LIFNode(surrogate_function=surrogate.LeakyKReLU()), layer.Linear(n, 10), lif(),
    )  # fmt: skip
    return net, spikes(10, 8, n)


NETWORKS: dict[str, Callable[..., Made]] = {
    make.__name__: make
    for make in (
        mlp, csnn, sew_resnet, ms_resnet, spikformer, dvs_gesture, stbp, converted_ann, recurrent,
        element_wise, read_out, mixed,
    )
}  # fmt: skip


def build(name: str, **options: int) -> Made:
    """A network of the list, in multi-step mode, whose neurons fire, and its input."""
    torch.manual_seed(0)
    net, x = NETWORKS[name](**options)
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                spread = 3 / module.in_features**0.5
                module.weight.copy_((torch.randn(module.weight.shape) * spread * 16).round() / 16)
            elif isinstance(module, nn.Conv2d):
                module.weight.mul_(3)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.fill_(0.75)
    return net, x
