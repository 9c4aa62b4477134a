"""The bytes of a log: what is written, and that nothing damaged is read."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import struct
import sys
import zlib
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from hypothesis import given, settings
from hypothesis import strategies as st
from zolog_cases import logged_run, network, optimizer, same_bits, train

from tenfold.optim import FLAG_GRAD, FLAG_SKIPPED, ZOSGD, Scalar, splitmix64, zolog
from tenfold.optim import _log as log
from tenfold.optim._log import LoggedStep
from tenfold.optim.zolog import ZOLogError

SEED = 5


def header(eps: tuple[float, ...] = (1e-3,), **fields: object) -> dict[str, object]:
    return {
        "generator": "tfz-normal v1",
        "dist": "gaussian",
        "z_round": None,
        "restore": "auto",
        "rounding": "rne",
        "seed": SEED,
        "first_step": 0,
        "eps": list(eps),
        "optimizer": {"class": "ZOSGD", "options": {}, "groups": [{}] * len(eps)},
        "manifest": [],
        "base_sha256": "0" * 64,
        "state_sha256": None,
        **fields,
    }


def write(path: Path, steps: list[LoggedStep], head: dict[str, object] | None = None) -> bytes:
    head = header() if head is None else head
    data = log.encode_header(head)
    crc = zlib.crc32(data)
    for step in steps:
        records, crc = log.encode_step(step, head["eps"], crc)  # type: ignore[arg-type]
        data += records
    path.write_bytes(data)
    return data


def step(number: int, *scalars: Scalar, lrs: tuple[float, ...] = (1e-6,), eps: tuple[float, ...] = (1e-3,)):
    return LoggedStep(number, splitmix64(SEED, number), scalars or (Scalar(0, FLAG_GRAD, 0.25),), lrs, eps)


def test_the_bytes_of_a_record_are_those_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    data = write(path, [step(0, Scalar(0, 0, -1.5), Scalar(1, 0, 2.5), lrs=(0.125,)), step(1)])
    line, records = data[: data.index(b"\n") + 1], data[data.index(b"\n") + 1 :]
    assert line.startswith(b'{"format": "tenfold zolog", "version": 1, "generator": "tfz-normal v1"')
    body = line[: line.rindex(b', "crc32"')]
    assert json.loads(line)["crc32"] == f"{zlib.crc32(body):08x}"
    assert len(records) == 3 * 40
    crc, expected = zlib.crc32(line), b""
    seeds = [splitmix64(SEED, 0), splitmix64(SEED, 1)]
    for row in (
        (0, 0, 0x00, seeds[0], -1.5, 0.125, 1e-3),
        (0, 1, 0x80, seeds[0], 2.5, 0.125, 1e-3),
        (1, 0, 0x80, seeds[1], 0.25, 1e-6, 1e-3),
    ):
        body = struct.pack("<IHHQddf", *row)
        crc = zlib.crc32(body, crc)
        expected += body + struct.pack("<I", crc)
    assert records == expected


numbers = st.floats(allow_nan=False)
rates = st.floats(min_value=0, allow_infinity=False)
distances = st.one_of(
    st.sampled_from([1e-3, 1e-4, 0.1, 2.0**-10]), st.floats(min_value=1e-300, max_value=1e300)
)
scalars = st.builds(
    Scalar,
    st.integers(0, 65535),
    st.builds(lambda kind, block: kind | block << 8, st.sampled_from([0, 1, 2, 4]), st.integers(0, 70000)),
    numbers,
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[float], list[LoggedStep]]:
    groups = draw(st.integers(1, 3))
    per_group = st.tuples(*[distances] * groups)
    base = draw(per_group)
    first = draw(st.integers(0, 1000))
    steps = [
        LoggedStep(
            first + k,
            splitmix64(SEED, first + k),
            tuple(draw(st.lists(scalars, max_size=4))),
            draw(st.one_of(rates.map(lambda lr: (lr,) * groups), st.tuples(*[rates] * groups))),
            draw(st.one_of(st.just(base), per_group)),
        )
        for k in range(draw(st.integers(0, 4)))
    ]
    return [first, list(base)], steps


@settings(max_examples=200, deadline=None)
@given(run=runs())
def test_what_is_written_is_read_again_to_the_bit(
    run: tuple[list[float], list[LoggedStep]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    (first, eps), steps = run
    path = tmp_path_factory.mktemp("log") / "a.zolog"
    write(path, steps, header(eps=tuple(eps), first_step=first))  # type: ignore[arg-type]
    assert log.read(path).parts[0].steps == steps


def test_groups_that_agree_cost_no_record(tmp_path: Path) -> None:
    same = write(tmp_path / "a", [step(0, lrs=(1e-3, 1e-3), eps=(1e-3, 1e-2))], header(eps=(1e-3, 1e-2)))
    other = write(tmp_path / "b", [step(0, lrs=(1e-3, 1e-4), eps=(1e-3, 1e-2))], header(eps=(1e-3, 1e-2)))
    assert len(other) - len(same) == 40
    assert log.read(tmp_path / "b").parts[0].steps[0].lrs == (1e-3, 1e-4)


# -- damage -------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, bytes]:
    """A log of three steps of two records each."""
    path = tmp_path / "run.zolog"
    return path, write(path, [step(k, Scalar(0, 0, 0.5), Scalar(1, 0, 1.5)) for k in range(3)])


def test_a_log_cut_at_any_byte_is_refused_or_shorter(three: tuple[Path, bytes]) -> None:
    path, data = three
    start = data.index(b"\n") + 1
    for size in range(len(data)):
        path.write_bytes(data[:size])
        whole, left = divmod(size - start, 80)
        if size >= start and left == 0:  # the process stopped between two steps
            assert len(log.read(path).single().steps) == whole
            continue
        with pytest.raises(ZOLogError, match=r"run\.zolog: expected"):
            log.read(path)
        if size < start:
            with pytest.raises(ZOLogError):
                log.read(path, recover=True)
        else:
            contents = log.read(path, recover=True)
            assert (len(contents.single().steps), contents.torn) == (whole, left)


def test_every_flipped_byte_is_noticed(three: tuple[Path, bytes]) -> None:
    path, data = three
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        with pytest.raises(ZOLogError):
            log.read(path)
        if at < len(data) - 80:  # whole records follow: no torn tail, and not to be dropped
            with pytest.raises(ZOLogError):
                log.read(path, recover=True)


def test_records_cannot_be_left_out_moved_or_doubled(three: tuple[Path, bytes]) -> None:
    path, data = three
    start = data.index(b"\n") + 1
    head, records = data[:start], [data[k : k + 40] for k in range(start, len(data), 40)]
    for order in ([0, 1, 4, 5], [2, 3, 4, 5], [0, 1, 4, 5, 2, 3], [0, 1, 0, 1, 2, 3], [1, 0, 2, 3, 4, 5]):
        path.write_bytes(head + b"".join(records[k] for k in order))
        with pytest.raises(ZOLogError):
            log.read(path)


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_refused_by_type(seed: int, three: tuple[Path, bytes]) -> None:
    path, data = three
    noise = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(noise.randint(1, 30)):
        at = noise.randrange(len(damaged))
        damaged[at : at + noise.randint(0, 9)] = noise.randbytes(noise.randint(0, 9))
    path.write_bytes(damaged)
    if bytes(damaged) != data:
        try:
            log.read(path)
        except ZOLogError:
            pass
        else:  # only the tail can have been lost unnoticed, by whole steps
            assert data.startswith(bytes(damaged))


def sealed(fields: dict[str, object]) -> bytes:
    text = json.dumps(fields)[:-1].encode()
    return text + b', "crc32": "%08x"}\n' % zlib.crc32(text)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 2}, "version 1, got 2"),
        ({"version": "1"}, "version 1, got '1'"),
        ({"seed": None}, "proper 'seed'"),
        ({"seed": True}, "proper 'seed'"),
        ({"seed": -1}, "in range"),
        ({"first_step": 1 << 40}, "in range"),
        ({"eps": []}, "eps of each group"),
        ({"eps": ["1e-3"]}, "eps of each group"),
        ({"manifest": [{"name": "a"}]}, "a manifest of stream, name"),
        ({"manifest": 3}, "proper 'manifest'"),
        ({"optimizer": []}, "proper 'optimizer'"),
        ({"average": []}, "list of headers"),
        ({"average": [{}]}, "proper 'version'"),
    ],
)
def test_headers_that_tell_something_else(change: dict[str, object], what: str, tmp_path: Path) -> None:
    path = tmp_path / "run.zolog"
    path.write_bytes(sealed({"format": "tenfold zolog", "version": 1, **header(), **change}))
    with pytest.raises(ZOLogError, match=what):
        log.read(path)


def test_other_files_and_endless_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.zolog"
    for data in (
        b"",
        b"\n",
        b"PK\x03\x04",
        b"{}\n",
        b'{"format": "tenfold zolog", "version": 1}\n',
        b"\x00" * 99,
    ):
        path.write_bytes(data)
        with pytest.raises(ZOLogError):
            log.read(path)
    monkeypatch.setattr(log, "MAX_HEADER", 1 << 12)  # a line that never ends is not read into memory
    path.write_bytes(log.encode_header(header(optimizer={"x": "y" * (1 << 13)})))
    with pytest.raises(ZOLogError, match="header line of at most 4096 bytes"):
        log.read(path)
    with pytest.raises(FileNotFoundError):
        log.read(tmp_path / "none.zolog")


# -- what an optimizer writes ---------------------------------------------------------------------------


def test_twenty_thousand_steps_take_800_kilobytes(tmp_path: Path) -> None:
    logged_run(tmp_path / "a.zolog", 50)
    line = (tmp_path / "a.zolog").read_bytes().index(b"\n") + 1
    assert (tmp_path / "a.zolog").stat().st_size - line == 50 * 40


def test_a_step_is_in_the_file_when_step_returns(tmp_path: Path) -> None:
    model = network()
    opt = optimizer(model, "sgd q=3")
    path = tmp_path / "a.zolog"
    with zolog.ZOLog.create(path, opt, model, fsync=True):
        start = path.stat().st_size
        for done in (1, 2, 3):
            train(opt, model, done)
            assert path.stat().st_size - start == done * 3 * 40
            last = log.read(path).single().steps[-1]
            assert last.scalars == opt.last_step.scalars
            assert (last.lrs, last.eps, last.seed) == ((1e-2,), (1e-3,), opt.last_step.seed)


def test_skipped_steps_are_logged(tmp_path: Path) -> None:
    model = network()
    opt = optimizer(model)
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        train(opt, model, 1)
        opt.step(lambda: float("nan"))
        train(opt, model, 3)
    steps = log.read(tmp_path / "a.zolog").single().steps
    assert [any(s.kind == FLAG_SKIPPED for s in step.scalars) for step in steps] == [False, True, False]
    assert zolog.info(tmp_path / "a.zolog")["skipped_steps"] == 1


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    opt = optimizer(model)
    path = tmp_path / "a.zolog"
    recording = zolog.ZOLog.create(path, opt, model)
    train(opt, model, 2)
    before = path.read_bytes()
    file = recording._appender._file

    class Full:
        closed = False

        def write(self, data: bytes) -> int:
            file.write(data[:17])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return getattr(file, name)

    monkeypatch.setattr(recording._appender, "_file", Full())
    with pytest.raises(OSError, match="No space"):
        train(opt, model, 3)
    assert path.read_bytes() == before
    monkeypatch.undo()
    recording.close()


def test_changed_options_are_refused_before_the_step(tmp_path: Path) -> None:
    model = network()
    opt = optimizer(model, weight_decay=0.1)
    recording = zolog.ZOLog.create(tmp_path / "a.zolog", opt, model)
    train(opt, model, 2)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    opt.param_groups[0]["weight_decay"] = 0.2
    with pytest.raises(ZOLogError, match="expected the options of its header"):
        train(opt, model, 3)
    opt.param_groups[0]["weight_decay"] = 0.1
    model[0].weight.requires_grad_(False)
    with pytest.raises(ZOLogError, match="expected the trainable parameters of its header"):
        train(opt, model, 3)
    model[0].weight.requires_grad_(True)
    opt.num_steps = 7
    with pytest.raises(ZOLogError, match="expected step 2 next, got 7"):
        opt.step(lambda: 0.0)
    assert same_bits(before, model)
    opt.num_steps = 2
    train(opt, model, 3)
    recording.close()
    opt.param_groups[0]["weight_decay"] = 0.2
    train(opt, model, 4)  # nobody logs any more
    assert zolog.info(tmp_path / "a.zolog")["steps"] == 3


def test_what_cannot_be_logged(tmp_path: Path) -> None:
    model = network()
    opt = optimizer(model)
    path = tmp_path / "a.zolog"
    with pytest.raises(ValueError, match=r"module: expected one that holds every parameter .* 0\.weight"):
        zolog.ZOLog.create(path, opt, network())
    with pytest.raises(ValueError, match="num_queries: expected fewer than 65536"):
        zolog.ZOLog.create(path, ZOSGD(model.parameters(), num_queries=1 << 16), model)
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module"):
        zolog.ZOLog.create(path, opt, [1])  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="expected a new file"):
        zolog.ZOLog.create(path, opt, model)
    assert path.read_text() == "mine"


def test_only_one_process_writes(tmp_path: Path) -> None:
    model = network()
    opt = optimizer(model)
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        other = network()
        with pytest.raises(ZOLogError, match="nobody else writes"):
            zolog.ZOLog.open(tmp_path / "a.zolog", optimizer(other), other)
    zolog.ZOLog.open(tmp_path / "a.zolog", optimizer(other), other).close()


def test_the_hash_is_of_names_shapes_dtypes_and_bytes() -> None:
    a = torch.arange(6.0)
    hashes = {
        zolog.weights_sha256([("a", a)]),
        zolog.weights_sha256([("b", a)]),
        zolog.weights_sha256([("a", a.reshape(2, 3))]),
        zolog.weights_sha256([("a", a.view(torch.int32).view(torch.float32) + 1)]),
        zolog.weights_sha256([("a", a.bfloat16())]),
        zolog.weights_sha256([("a", a), ("b", a)]),
    }
    assert len(hashes) == 6
    assert zolog.weights_sha256([("a", a.reshape(3, 2).t().contiguous().t())]) == zolog.weights_sha256(
        [("a", a.reshape(3, 2))]
    )
    written = b"x float32 [2]\n" + struct.pack("<2f", 1.0, -2.0)
    assert zolog.weights_sha256([("x", torch.tensor([1.0, -2.0]))]) == hashlib.sha256(written).hexdigest()


@pytest.mark.parametrize("eps", [-1e-3, 0.0, math.inf, math.nan])
def test_a_step_with_an_eps_that_is_none(tmp_path, eps):
    """Before a replay comes to it: the weights would be half written."""
    write(tmp_path / "a.zolog", [step(0), step(1, eps=(eps,))])
    with pytest.raises(ZOLogError, match=r"a\.zolog: expected an eps > 0 in step 1"):
        log.read(tmp_path / "a.zolog")


def test_a_step_whose_product_is_beyond_numbers(tmp_path):
    _, _, base = logged_run(tmp_path / "a.zolog", 2)
    part = log.read(tmp_path / "a.zolog").single()
    scalar = part.steps[1].scalars[0]._replace(value=1e200)
    steps = [part.steps[0], part.steps[1]._replace(scalars=(scalar,), lrs=(1e200,))]
    write(tmp_path / "a.zolog", steps, part.header)
    before = copy.deepcopy(base)
    with pytest.raises(ZOLogError, match=r"a\.zolog: expected steps that can be made again"):
        zolog.replay(base, tmp_path / "a.zolog")
    assert same_bits(base, before)
