"""Put the pretended card into this process."""

from typing import Any

from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.targets import Target


def start(target: Target, **options: Any) -> None:
    """Let torch, Triton and CuPy see a card of ``target``, for good; ``options`` are `Machine`'s.

    Must come before a kernel of Triton is defined. Raises RuntimeError where those are interpreted.
    """
    from tests.gpu_in_software import cuda, driver, nvrtc

    LOG.options.update(options)
    driver.install(target)
    cuda.install(target)
    nvrtc.install(target)
