"""The limits of the targets, from the CUDA C++ Programming Guide's table of compute capabilities."""

from dataclasses import dataclass

MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_THREADS = 1024


@dataclass(frozen=True)
class Target:
    """A kind of GPU; ``sm`` is its compute capability, as 90 for sm_90."""

    sm: int
    card: str
    """A card with it, whose number of multiprocessors and memory the pretended one has."""
    multiprocessors: int
    memory_gb: int
    block_shared: int
    """Bytes of shared memory that one block can have."""
    multiprocessor_shared: int
    """Bytes of shared memory of a multiprocessor."""
    multiprocessor_threads: int

    @property
    def name(self) -> str:
        return f"sm_{self.sm}"


TARGETS = {
    target.name: target
    for target in (
        Target(61, "GTX 1070", 15, 8, 48 << 10, 96 << 10, 2048),
        Target(75, "RTX 2080", 46, 8, 64 << 10, 64 << 10, 1024),
        Target(80, "A100", 108, 40, 163 << 10, 164 << 10, 2048),
        Target(86, "RTX 3080", 68, 10, 99 << 10, 100 << 10, 1536),
        Target(89, "RTX 4090", 128, 24, 99 << 10, 100 << 10, 1536),
        Target(90, "H100", 132, 80, 227 << 10, 228 << 10, 2048),
    )
}


def find_target(name: str) -> Target:
    """The target called ``name``, as sm_90. Raises ValueError for an unknown one."""
    if name not in TARGETS:
        raise ValueError(f"target is {name!r}; allowed: {', '.join(TARGETS)}")
    return TARGETS[name]


def check_launch(
    kernel: str, compiled_for: int, target: Target, grid: tuple[int, int, int], threads: int, shared: int
) -> None:
    """Raise ValueError, one line that names the limit, for a launch that ``target`` can't make.

    Args:
        kernel: its name.
        compiled_for: the sm of its PTX, which runs on this one and later ones.
        grid: blocks along x, y and z.
        threads: threads of a block.
        shared: bytes of shared memory of a block.
    """
    where = f"kernel {kernel} on {target.name}"
    if compiled_for > target.sm:
        raise ValueError(f"{where}: its PTX is for sm_{compiled_for}; allowed: PTX for {target.name} or earlier")
    for axis, blocks, limit in zip("xyz", grid, MAX_GRID, strict=True):
        if not 1 <= blocks <= limit:
            raise ValueError(f"{where}: the grid has {blocks} blocks along {axis}; allowed: 1 to {limit}")
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"{where}: a block has {threads} threads; allowed: 1 to {MAX_THREADS}")
    if shared > target.block_shared:
        raise ValueError(
            f"{where}: a block needs {shared} bytes of shared memory; allowed: up to {target.block_shared}"
        )
