"""NumPy arrays in and out through DLPack: the same memory, the same numbers, clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold import _arrays
from tenfold.ops import Term, stochastic_round, zo_adam_, zo_chain_, zo_perturb_


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numpy_arrays_are_written_in_place(dtype):
    array = np.linspace(-1, 1, 3000, dtype=dtype)
    tensor = torch.from_numpy(array.copy())
    address = array.__array_interface__["data"]
    zo_perturb_([array], [3], 1, 0, 0.5)
    zo_perturb_([tensor], [3], 1, 0, 0.5)
    assert array.__array_interface__["data"] == address
    assert np.array_equal(array, tensor.numpy())
    assert not np.array_equal(array, np.linspace(-1, 1, 3000, dtype=dtype))


def test_strided_and_empty_and_scalar_arrays():
    straight, matrix = np.ones((40, 30), np.float32), np.ones((30, 40), np.float32)
    zo_perturb_([straight, matrix.T], [0, 0], 1, 0, 0.5)
    assert np.array_equal(straight, matrix.T)
    wide = np.ones((40, 60), np.float32)
    zo_perturb_([wide[:, ::2]], [0], 1, 0, 0.5)
    assert np.array_equal(wide[:, ::2], straight)
    assert (wide[:, 1::2] == 1).all()
    zero = np.array(1.0, np.float32)
    zo_perturb_([np.empty((0, 3), np.float32), zero], [0, 0], 1, 0, 0.5)
    assert zero == straight[0, 0]


def test_every_tensor_argument_takes_arrays():
    arrays = [np.ones(500, np.float32) for _ in range(3)]
    tensors = [torch.ones(500) for _ in range(3)]
    for p, m, v in (arrays, tensors):
        zo_adam_([p], [m], [v], [0], [Term(1, 0, 0.3)], lr=0.1, step=2)
    for a, t in zip(arrays, tensors, strict=True):
        assert np.array_equal(a, t.numpy())
    live, clean = np.zeros(500, np.float32), np.ones(500, np.float32)
    zo_chain_([live], [0], [Term(1, 0, 0.3)], sources=[clean])
    assert (clean == 1).all()
    assert (live != 0).all()


def test_arrays_and_tensors_may_be_mixed_but_not_share_memory():
    array = np.ones(100, np.float32)
    other = torch.ones(100)
    zo_perturb_([array, other], [0, 0], 1, 0, 0.5)
    assert np.array_equal(array, other.numpy())
    with pytest.raises(ValueError, match=r"params\[1\]"):
        zo_perturb_([array, torch.from_numpy(array)], [0, 1], 1, 0, 0.5)


def test_results_are_the_kind_that_was_given():
    x = np.linspace(0, 1, 50, dtype=np.float32)
    rounded = stochastic_round(x, torch.float16, 1)
    assert isinstance(rounded, np.ndarray)
    assert rounded.dtype == np.float16
    assert np.array_equal(rounded, stochastic_round(torch.from_numpy(x), torch.float16, 1).numpy())
    assert isinstance(stochastic_round(torch.from_numpy(x), torch.float16, 1), torch.Tensor)


def test_read_only_arrays_are_read_but_not_written():
    array = np.linspace(0, 1, 50, dtype=np.float32)
    array.setflags(write=False)
    before = array.copy()
    with pytest.raises(ValueError, match=r"params\[0\]: expected a writable array, got a read-only one"):
        zo_perturb_([array], [0], 1, 0, 0.5)
    with pytest.raises(ValueError, match=r"exp_avgs\[0\]: expected a writable array"):
        zo_adam_(
            [np.ones(50, np.float32)],
            [array],
            [np.ones(50, np.float32)],
            [0],
            [Term(1, 0, 1.0)],
            lr=0.1,
            step=1,
        )
    live = np.zeros(50, np.float32)
    zo_perturb_([live], [0], 1, 0, 0.5, sources=[array])
    assert (live != 0).all()
    assert stochastic_round(array, torch.float16, 1).shape == (50,)
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.ones(8, np.int32),
        lambda: np.ones(8, np.complex64),
        lambda: np.ones(8, bool),
        lambda: np.ones(8, ">f4"),
        lambda: np.ones(8, object),
        lambda: np.ones(8, np.longdouble),
        lambda: np.ones(8, [("x", np.float32)]),
        lambda: [1.0, 2.0],
        lambda: b"12345678",
        lambda: np.ones(17, np.uint8)[1:].view(np.dtype([("pad", "u1"), ("x", "<f4"), ("q", "u1", 3)]))["x"],
    ],
    ids=[
        "int",
        "complex",
        "bool",
        "big-endian",
        "object",
        "longdouble",
        "record",
        "list",
        "bytes",
        "unaligned field",
    ],
)
def test_arrays_that_no_kernel_takes_are_named(make):
    with pytest.raises((TypeError, ValueError), match=r"^params\[1\]: expected .*got"):
        zo_perturb_([np.ones(3, np.float32), make()], [0, 1], 1, 0, 0.5)


@pytest.mark.parametrize(
    "make", [lambda: np.ones(8, np.float32)[::-1], lambda: np.ones((4, 5), np.float32)[:, ::-1]]
)
def test_negative_strides_are_refused(in_child, make):
    """In a child: torch.from_dlpack ends the process on them."""

    def call() -> None:
        for which, run in (
            ("params", lambda a: zo_perturb_([a], [0], 1, 0, 0.5)),
            ("x", lambda a: stochastic_round(a, torch.float16, 1)),
        ):
            with pytest.raises(ValueError, match=rf"^{which}(\[0\])?: expected .*stride"):
                run(make())

    assert in_child(call) == 0


def test_any_array_that_speaks_dlpack_is_taken():
    class Foreign:
        """What CuPy and JAX arrays look like from here."""

        def __init__(self) -> None:
            self.memory = torch.ones(20)

        def __dlpack__(self, **options):
            return self.memory.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.memory.__dlpack_device__()

    foreign = Foreign()
    zo_perturb_([foreign], [0], 1, 0, 0.5)
    assert (foreign.memory != 1).all()


def test_arrays_outlive_their_views():
    tensor = _arrays.as_tensor("x", np.full(1000, 3.0, np.float32))
    for _ in range(10):
        np.zeros(1000, np.float32)
    assert (tensor == 3).all()
