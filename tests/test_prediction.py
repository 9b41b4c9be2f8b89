"""The page of predicted times is what its script makes of the compiled kernels' page, and its models behave."""

from dataclasses import replace

import pytest

from bench import prediction
from bench.prediction_models import GPUS, Size, Sizes, linear_lif, scan, training_step

H200, _, _, GTX_1070 = GPUS
SIZES = Sizes((prediction.PAGE.parent / "compiled.md").read_text(encoding="utf-8"))


def test_page_is_current() -> None:
    assert prediction.PAGE.read_text(encoding="utf-8") == prediction.page(), "run `python -m bench.prediction`"


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "expected"),
    [
        (64, 128, 0.0, (8, "registers")),  # 64 x 128 of 65536
        (33, 256, 0.0, (6, "registers")),  # a warp's registers come in lots of 256: 40 a thread
        (16, 512, 0.0, (4, "threads")),
        (32, 128, 60.0, (3, "shared memory")),  # of 228 KB, one more for each block
        (16, 32, 0.0, (32, "blocks")),
    ],
)
def test_occupancy(registers: int, threads: int, shared: float, expected: tuple[int, str]) -> None:
    assert H200.occupancy(Size(registers, threads, shared)) == expected


def test_scan_moves_its_bytes_at_the_rate_of_a_copy() -> None:
    found = scan(GTX_1070, SIZES, 1 << 20, 16, "forward").microseconds
    assert found == pytest.approx(2.5 + 12 * 16 * 2**20 / (0.9 * 256e3))
    starved = replace(GTX_1070, latencies=(220, 60_000, 6))
    assert scan(starved, SIZES, 1 << 20, 16, "forward").microseconds > 2 * found


def test_more_work_takes_longer_and_no_step_is_faster_than_its_floor() -> None:
    for gpu in GPUS:
        times = [linear_lif(gpu, SIZES, n).microseconds for n in (256, 1024, 16384)]
        assert times == sorted(times)
        for B, T in ((64, 10), (64, 1000), (8192, 100)):
            step = training_step(gpu, SIZES, B, T)
            assert step.microseconds > float(step.note.split()[1])
    assert training_step(H200, SIZES, 64, 100).microseconds < training_step(GTX_1070, SIZES, 64, 100).microseconds
