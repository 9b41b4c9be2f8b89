"""Set-up shared by all tests: without a GPU the Triton kernels run in Triton's interpreter."""

import os

import pytest
import torch

# Triton reads the variable when a kernel is defined, so it must be set before anything imports one.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from fastsnn import data

    folder = data.default_folder()
    gpu, mnist = torch.cuda.is_available(), data.is_present("mnist", folder)
    for item in items:
        if "gpu" in item.keywords and not gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))
        if "mnist" in item.keywords and not mnist:
            item.add_marker(pytest.mark.skip(reason=f"needs MNIST, and {folder} ($FASTSNN_DATA) has none"))
