"""The encoder and the packing in Triton: the bits of kernels/philox.py, one launch each, and nothing that waits."""

from typing import Any

import pytest
import torch
from neuron_cases import DEVICE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastsnn
from fastsnn import encoding
from fastsnn.config import FitConfig
from fastsnn.kernels import packed, philox
from fastsnn.kernels.triton import philox as triton_philox
from fastsnn.kernels.triton.philox import poisson_spikes
from fastsnn.sources.images import DataSet, Images
from fastsnn.training.autograd_step import AutogradStep

DTYPES = [torch.uint8, torch.float32, torch.float64, torch.float16]


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU too: in the interpreter."""
    for module in (encoding, packed):
        monkeypatch.setattr(module, "launches_on", lambda tensor: True)


def draw(B: int, P: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Pixels [B, P] with black, white and, of the floating ones, intensities next to 0 and to 1."""
    pixels = torch.randint(0, 256, (B, P), generator=torch.Generator().manual_seed(B + P), dtype=torch.uint8)
    pixels[:, ::5], pixels[:, 1::7] = 0, 255
    if dtype is torch.uint8:
        return pixels.to(DEVICE)
    pixels = (pixels.double() / 255).to(dtype)
    pixels[:, 2::7], pixels[:, 3::7] = torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps / 2
    return pixels.to(DEVICE)


def expected(pixels: Tensor, T: int, seed: int, epoch: int, stream: int, ids: Tensor) -> Tensor:
    return philox.poisson_words(philox.thresholds(pixels), T, seed, epoch, stream, ids)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "seed", "epoch", "stream"),
    [(1, 0, 0, 0), (32, 2**64 - 1, 2**32 - 1, 255), (45, 2**63 + 11, 4, 1), (128, 2**31, 2**31, 0), (131, 5, 1, 1)],
)
def test_words_are_those_of_philox(dtype: torch.dtype, T: int, seed: int, epoch: int, stream: int) -> None:
    """Of programs that hold several samples and of samples that lie in several programs."""
    ids = torch.tensor([5, 0, 2**32 - 1], device=DEVICE)
    pixels = draw(3, 50, dtype)
    wanted = expected(pixels, T, seed, epoch, stream, ids)
    assert torch.equal(poisson_spikes(pixels, T, seed, epoch, stream, ids, packed=True), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacked_words_are_those_of_philox(dtype: torch.dtype) -> None:
    ids = torch.tensor([5, 0, 2**32 - 1], device=DEVICE)
    pixels = draw(3, 50, dtype)
    spikes = poisson_spikes(pixels, 131, 7, 1, 0, ids, packed=False)
    assert spikes.dtype == torch.float32
    assert torch.equal(spikes, philox.unpack(expected(pixels, 131, 7, 1, 0, ids), 131))


def test_a_white_byte_is_certain() -> None:
    """With this seed a pixel of 65535 in 65536 is silent once: the first is silent there, the second not."""
    thresholds = torch.tensor([[65535]], device=DEVICE)
    rare = philox.poisson_words(thresholds, 128, 1873, 0, 0, torch.zeros(1, dtype=torch.int64, device=DEVICE))
    assert not (rare == -1).all()
    white = torch.full((1, 1), 255, dtype=torch.uint8, device=DEVICE)
    assert (poisson_spikes(white, 128, 1873, 0, 0, None, packed=True) == -1).all()


def test_samples_count_from_0_by_default() -> None:
    pixels = draw(7, 40)
    wanted = expected(pixels, 9, 1, 0, 0, torch.arange(7, device=DEVICE))
    assert torch.equal(poisson_spikes(pixels, 9, 1, 0, 0, None, packed=True), wanted)


@pytest.mark.parametrize("shape", [(0, 28, 28), (0,), (3,), (3, 0), (2, 1, 4, 4), (1, 1)])
def test_images_of_any_shape(shape: tuple[int, ...]) -> None:
    assert fastsnn.poisson_encode(torch.ones(shape, device=DEVICE), T=33).shape == (33, *shape)
    assert fastsnn.poisson_encode(torch.ones(shape, device=DEVICE), T=33, packed=True).shape == (2, *shape)


def test_a_view_is_encoded_as_its_values() -> None:
    pixels, ids = draw(6, 9), torch.arange(12, device=DEVICE)[::2]
    found = poisson_spikes(pixels.t(), 5, 1, 0, 0, ids[:5].repeat(2)[:9], packed=True)
    assert torch.equal(found, expected(pixels.t(), 5, 1, 0, 0, ids[:5].repeat(2)[:9]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_intensities_outside_0_to_1_are_the_nearest_inside(dtype: torch.dtype) -> None:
    """On a GPU nobody looks at them: the same spikes with Triton and without."""
    pixels = torch.tensor([[-1e-3, -torch.inf, torch.nan, 1.001, 9e3, torch.inf]], dtype=dtype, device=DEVICE)
    spikes = poisson_spikes(pixels, 130, 3, 0, 0, None, packed=False)
    assert spikes[:, 0].mean(0).tolist() == [0, 0, 0, 1, 1, 1]
    assert philox.thresholds(pixels).tolist() == [[0, 0, 0, 65536, 65536, 65536]]


@pytest.mark.parametrize("T", [1, 31, 32, 33, 131])
def test_packing_and_unpacking(T: int) -> None:
    """More neurons than a program has, and a number of them that is no power of two."""
    spikes = torch.rand(T, 3, 401, generator=torch.Generator().manual_seed(T)).to(DEVICE) < 0.4
    words = triton_philox.pack(spikes)
    assert torch.equal(words, philox.pack(spikes))
    for dtype in (torch.float32, torch.uint8, torch.float16):
        assert torch.equal(triton_philox.unpack(words, T, dtype), spikes.to(dtype))
    # From a view of the words too.
    assert torch.equal(triton_philox.unpack(words[:, 1:2, 3:9], T), spikes[:, 1:2, 3:9].float())


class Operators(TorchDispatchMode):
    """Lists the torch operators that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


class Launches(list[Any]):
    """Stands in for a kernel: counts its launches and makes none."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **options: self.append(grid)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("packs", [False, True])
def test_encoding_is_one_launch(dtype: torch.dtype, packs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it torch only allocates memory and looks at shapes: no kernel of its own, and no copy to the host."""
    launches = Launches()
    monkeypatch.setattr(triton_philox, "poisson_kernel", launches)
    monkeypatch.setattr(encoding, "_check", lambda *_: None)  # looks at values on the CPU, and on no GPU
    images, ids = draw(3, 784, dtype).reshape(3, 28, 28), torch.arange(3, device=DEVICE)
    with Operators() as operators:
        fastsnn.poisson_encode(images, T=100, sample_ids=ids, packed=packs)
        fastsnn.poisson_encode(images, T=100, packed=packs)
    assert len(launches) == 2
    assert set(operators.names) <= {"empty", "view", "_unsafe_view", "reshape", "_reshape_alias"}


def test_packing_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches()
    for name in ("pack_kernel", "unpack_kernel"):
        monkeypatch.setattr(triton_philox, name, launches)
    with Operators() as operators:
        triton_philox.pack(torch.zeros(33, 5, dtype=torch.bool, device=DEVICE))
        triton_philox.unpack(torch.zeros(2, 5, dtype=torch.int32, device=DEVICE), 33)
    assert len(launches) == 2
    assert set(operators.names) <= {"zeros", "empty", "view", "select", "detach"}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_device() -> None:
    images = draw(64, 784, torch.float32).reshape(64, 28, 28)
    fastsnn.poisson_encode(images)
    torch.cuda.set_sync_debug_mode("error")
    try:
        words = fastsnn.poisson_encode(images, packed=True)
        fastsnn.PackedSpikes(words, 100).unpack()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_encoding_is_a_small_share_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the launches of a step layer by layer, as backend cupy takes it; the neurons stand as one operator here."""
    launches = Launches()
    for name in ("poisson_kernel", "unpack_kernel"):
        monkeypatch.setattr(triton_philox, name, launches)
    monkeypatch.setattr(encoding, "_check", lambda *_: None)
    network = torch.nn.Sequential(torch.nn.Linear(784, 10), torch.nn.Threshold(0.5, 0.0)).to(DEVICE)
    images, labels = draw(64, 784).reshape(64, 784), torch.zeros(64, dtype=torch.int64, device=DEVICE)
    source = Images(DataSet("drawn", images, labels, images, labels, (28, 28)))
    network = torch.nn.Sequential(torch.nn.Flatten(2), *network)
    step = AutogradStep(network, source, torch.optim.Adam(network.parameters()), FitConfig(T=100))
    with Operators() as operators:
        step.train(torch.arange(64, device=DEVICE), 1, 64, [1e-3])
    shapes = {"view", "reshape", "_unsafe_view", "t", "detach", "expand", "split", "unsqueeze", "permute", "empty"}
    others = [name for name in operators.names if name not in shapes]
    assert len(launches) == 2
    assert 10 * len(launches) < len(others)
