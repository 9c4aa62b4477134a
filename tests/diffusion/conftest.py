"""Diffusion models of random weights are tiny: one thread is fastest."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    pytest.importorskip("diffusers")
    from tenfold.diffusion import tiny_bundle

    return tiny_bundle(0)
