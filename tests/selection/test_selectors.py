"""The interface that all selectors share, on every method, and values from elsewhere."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_everything

from tenfold import selection
from tenfold.selection import METHODS, Selection, budget_size, class_budgets, select

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")

EVERY = pytest.mark.parametrize("method", METHODS)


# ---- every method ------------------------------------------------------------------------------------------


def rows_asked(method: str, k: int, chosen: Selection) -> int:
    """GradMatch leaves rows of weight 0 out, and says how many were asked for."""
    return len(chosen) if method == "gradmatch" else k


@EVERY
@pytest.mark.parametrize("k", [0, 1, 17, 50])
def test_budgets(everything, method, k):
    selector = everything.fit(METHODS[method]())
    if method == "ccs" and k == 50:
        selector.set_params(beta=0.0)
    chosen = selector.select(k)
    assert len(chosen) == rows_asked(method, k, chosen)
    assert chosen.indices.dtype == np.int64
    assert len(set(chosen)) == len(chosen)
    assert all(0 <= i < 60 for i in chosen)
    assert chosen.info["method"] == method
    assert chosen.info["n"] == selector.n_samples_ == 60
    assert selector.indices_ is chosen.indices
    assert selector.selection_ is chosen
    again = everything.fit(METHODS[method](**selector.get_params())).select(k)
    assert again.indices.tolist() == chosen.indices.tolist()
    if chosen.weights is not None:
        assert chosen.weights.tolist() == again.weights.tolist()


@EVERY
def test_all_rows_and_one_more(everything, method):
    selector = everything.fit(METHODS[method]())
    if method == "ccs":
        with pytest.raises(ValueError, match=r"budget: expected at most 54, the rows that beta=0.1 leaves"):
            selector.select(60)
        selector.set_params(beta=0.0)
    chosen = selector.select(60)
    assert sorted(chosen) == list(range(60)) or method == "gradmatch"
    with pytest.raises(ValueError, match="budget: expected at least 0 and at most the 60 rows, got 61"):
        selector.select(61)
    with pytest.raises(ValueError, match="budget: expected at least 0 and at most the 60 rows, got -1"):
        selector.select(-1)
    for share in (0.0, 1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"budget: expected a share in \(0, 1\]"):
            selector.select(share)
    assert len(selector.select(0.5)) == rows_asked(method, 30, selector.selection_)


@EVERY
@pytest.mark.parametrize("how", [True, "equal"])
def test_balanced(everything, method, how):
    selector = everything.fit(METHODS[method](balanced=how))
    chosen = selector.select(20)
    counts = np.bincount(everything.y, minlength=3)
    if method == "moderate" and how is True:
        quotas = np.minimum(20 // 3, counts)
    else:
        quotas = class_budgets(counts, 20, "proportional" if how is True else how)
        assert quotas.sum() == 20
    found = np.bincount(everything.y[chosen.indices], minlength=3)
    if method == "gradmatch":
        assert (found <= quotas).all()
        assert (found > 0).all()
    else:
        assert found.tolist() == quotas.tolist()
    classes = everything.y[chosen.indices]
    assert (np.diff(classes) >= 0).all()  # class after class


BY_ITSELF = [name for name in METHODS if name not in ("random", "ccs", "kmeans", "ssp")]
"""Without those that draw with a seed for each class, and prototypes, which are those of all rows."""


@pytest.mark.parametrize("method", BY_ITSELF)
def test_balanced_is_each_class_by_itself(everything, method):
    kind = METHODS[method]
    whole = everything.fit(kind(balanced="proportional")).select(20)
    expected = []
    for c, quota in enumerate(class_budgets(np.bincount(everything.y), 20)):
        rows = np.flatnonzero(everything.y == c)
        parts = {"X": everything.X[rows], "y": everything.y[rows], "logits": everything.logits[rows]}
        parts |= {"scores": everything.scores[rows], "dynamics": everything.dynamics.take(rows)}
        if kind.scores_suffice:
            parts.pop("scores")
        expected += rows[everything.fit(kind(), **parts).select(int(quota)).indices].tolist()
    assert whole.indices.tolist() == expected


@EVERY
def test_one_class_duplicates_and_constant_features(method):
    data = make_everything(24, classes=2, X=np.repeat(np.arange(4), 6)[:, None].astype(np.float32) * [1, 2])
    kind = METHODS[method]
    for X in (data.X, np.ones((24, 2), np.float32)):
        options = {"ridge": 0.1} if method == "log_determinant" else {}
        for given in ({"y": data.y}, {"y": np.zeros(24, int)}):
            chosen = data.fit(kind(**options), X=X, **given, validation=None).select(10)
            assert len(set(chosen)) == len(chosen) == rows_asked(method, 10, chosen)


@EVERY
def test_global_random_states_stay(everything, method):
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    errors = np.geterr()
    everything.fit(METHODS[method](seed=5)).select(7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert np.geterr() == errors


@EVERY
def test_what_is_missing_is_named(everything, method):
    for name in METHODS[method].needs:
        with pytest.raises(ValueError, match=rf"{name}: expected some data \({METHODS[method].__name__}"):
            everything.fit(METHODS[method](), **{name: None, "scores": None, "dynamics": None})
    with pytest.raises(ValueError, match="expected a fitted selector"):
        METHODS[method]().select(1)
    with pytest.raises(ValueError, match="budget: expected a number of rows or a share"):
        everything.fit(METHODS[method]()).select()


@EVERY
def test_select_is_the_same_in_one_call(everything, method):
    own = everything.fit(METHODS[method](seed=3)).select(9)
    scores = None if METHODS[method].scores_suffice else everything.scores
    short = select(
        method,
        everything.X,
        everything.logits,
        everything.y,
        k=9,
        seed=3,
        scores=scores,
        dynamics=everything.dynamics,
        validation=everything.validation,
    )
    assert short.indices.tolist() == own.indices.tolist()


@pytest.mark.parametrize("method", BY_ITSELF)
def test_permuted_rows_give_permuted_picks(everything, method):
    order = np.random.default_rng(8).permutation(60)
    parts = {"X": everything.X[order], "y": everything.y[order], "logits": everything.logits[order]}
    parts |= {"scores": everything.scores[order], "dynamics": everything.dynamics.take(order)}
    if METHODS[method].scores_suffice:
        parts.pop("scores")
    options = {"kind": "inner", "ridge": 1.0} if method == "log_determinant" else {}  # rbf: all begin alike
    straight = everything.fit(METHODS[method](**options)).select(9).indices
    permuted = order[everything.fit(METHODS[method](**options), **parts).select(9).indices]
    if method in ("correctness", "forgetting"):  # whole numbers: many are equal, and the row number decides
        kind = {"correctness": "correct"}.get(method, method)
        scores = everything.dynamics.scores(kind)
        assert scores[permuted].tolist() == scores[straight].tolist()
    else:
        assert permuted.tolist() == straight.tolist()


@EVERY
def test_the_number_of_threads_decides_nothing(everything, method):
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(everything.fit(METHODS[method]()).select(9))
    torch.set_num_threads(before)
    assert found[0].indices.tolist() == found[1].indices.tolist()
    for part in ("weights", "scores", "gains"):
        one, two = (getattr(chosen, part) for chosen in found)
        assert (one is None) is (two is None)
        assert one is None or one.tolist() == two.tolist(), part


# ---- kinds of data -----------------------------------------------------------------------------------------

READS_X = [name for name, kind in METHODS.items() if "X" in kind.needs]


class Rows(torch.utils.data.Dataset):
    def __init__(self, data, indexed):
        self.data, self.indexed = data, indexed

    def __len__(self):
        return len(self.data.X)

    def __getitem__(self, i):
        pair = torch.from_numpy(self.data.X[i]), int(self.data.y[i])
        return (*pair, i) if self.indexed else pair


@pytest.mark.parametrize("method", READS_X)
def test_arrays_tensors_maps_shards_and_loaders_are_alike(everything, method, tmp_path):
    kind = METHODS[method]
    expected = everything.fit(kind()).select(12).indices.tolist()
    path = tmp_path / "features.npy"
    np.save(path, everything.X)
    X, loader = everything.X, torch.utils.data.DataLoader
    forms = {
        "tensor": torch.from_numpy(X),
        "float64": X.astype(np.float64),
        "path": path,
        "text": str(path),
        "map": np.load(path, mmap_mode="r"),
        "shards": [X[:7], X[7:40], X[40:]],
        "tensor shards": [torch.from_numpy(X[:7]), torch.from_numpy(X[7:])],
        "maps": [np.load(path, mmap_mode="r")[:30], np.load(path, mmap_mode="r")[30:]],
        "loader": loader(Rows(everything, False), batch_size=7),
        "shuffled with numbers": loader(Rows(everything, True), batch_size=7, shuffle=True),
        "columns first": np.asfortranarray(X),
    }
    for name, form in forms.items():
        assert everything.fit(kind(), X=form).select(12).indices.tolist() == expected, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", READS_X)
def test_half_precision(everything, method, dtype):
    short = torch.from_numpy(everything.X).to(dtype)
    expected = everything.fit(METHODS[method](), X=short.float()).select(12)
    chosen = everything.fit(METHODS[method](), X=short).select(12)
    if method == "herding":  # a mean of rounded products: near ties may fall otherwise
        assert abs(chosen.gains[-1] - expected.gains[-1]) < 0.05
    else:
        assert chosen.indices.tolist() == expected.indices.tolist()


@pytest.mark.parametrize("method", ["el2n", "entropy", "margin", "loss", "least_confidence"])
def test_scores_of_a_loader_of_logits_are_not_kept(everything, method):
    data = torch.utils.data.TensorDataset(torch.from_numpy(everything.logits), torch.from_numpy(everything.y))
    loader = torch.utils.data.DataLoader(data, batch_size=7)
    streamed = METHODS[method](balanced=True).fit(logits=loader)
    assert streamed._inputs.logits is None
    whole = METHODS[method](balanced=True).fit(y=everything.y, logits=everything.logits)
    np.testing.assert_allclose(streamed.select(9).scores, whole.select(9).scores, rtol=1e-6)
    assert streamed.indices_.tolist() == whole.indices_.tolist()


def test_runs_are_averaged(everything):
    runs = np.stack([everything.logits, 3 * everything.logits, -everything.logits])
    own = [select("el2n", None, run, everything.y, k=1).scores for run in runs]
    together = select("el2n", None, runs, everything.y, k=1).scores
    np.testing.assert_allclose(together, np.mean(own, 0), rtol=1e-12)


def test_a_shuffled_loader_without_row_numbers_is_refused(everything):
    loader = torch.utils.data.DataLoader(Rows(everything, False), batch_size=7, shuffle=True)
    with pytest.raises(ValueError, match="X: expected a loader in the order of its data set"):
        selection.KCenterGreedy().fit(loader)
    weighted = torch.utils.data.WeightedRandomSampler(np.ones(60), 60)
    loader = torch.utils.data.DataLoader(Rows(everything, True), batch_size=7, sampler=weighted)
    with pytest.raises(ValueError, match=r"X( row numbers)?: expected every row once"):
        selection.KCenterGreedy().fit(loader)


def test_a_stream_has_no_rows_to_choose(everything):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(everything.X)

    with pytest.raises(ValueError, match="X: expected a loader of a data set with a length, got Stream"):
        selection.KCenterGreedy().fit(torch.utils.data.DataLoader(Stream(), batch_size=7))


def test_gathering_into_a_file(everything, tmp_path):
    loader = torch.utils.data.DataLoader(Rows(everything, True), batch_size=7, shuffle=True)
    rows, labels = selection.gather("X", loader, tmp_path / "rows.npy")
    assert isinstance(rows, np.memmap)
    assert rows.tolist() == everything.X.tolist()
    assert labels.tolist() == everything.y.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npy"]


def test_text_labels_and_the_labels_of_a_loader(everything):
    expected = selection.Moderate(balanced=True).fit(everything.X, everything.y).select(12)
    names = np.array(["ape", "bee", "cat"])[everything.y]
    assert list(selection.Moderate(balanced=True).fit(everything.X, names).select(12)) == list(expected)
    loader = torch.utils.data.DataLoader(Rows(everything, False), batch_size=7)
    assert list(selection.Moderate(balanced=True).fit(loader).select(12)) == list(expected)


def test_progress_is_shown(everything, capsys):
    selection.KCenterGreedy(verbose=True).fit(everything.X).select(9)
    assert "k-center: 9/9 (100 %)" in capsys.readouterr().err


def test_progress_changes_nothing(everything):
    for options in (
        {},
        {"metric": "cosine"},
        {"init": 5},
        {"init": [5, 8]},
        {"init": "random"},
        {"weighted": True},
    ):
        quiet = selection.KCenterGreedy(**options).fit(everything.X).select(20)
        told = selection.KCenterGreedy(**options, verbose=True).fit(everything.X).select(20)
        assert told.indices.tolist() == quiet.indices.tolist()
        assert told.gains.tolist() == quiet.gains.tolist()
        assert told.scores.tolist() == quiet.scores.tolist()
        assert options.get("weighted") is None or told.weights.tolist() == quiet.weights.tolist()


@pytest.mark.gpu
@EVERY
def test_tensors_on_a_gpu(method):
    """The same rows as on the CPU; what comes back is NumPy's."""
    draw = np.random.default_rng(7)
    data = make_everything(60, X=draw.integers(0, 9, size=(60, 5)).astype(np.float32))
    expected = data.fit(METHODS[method]()).select(12)
    X, logits = torch.from_numpy(data.X).cuda(), torch.from_numpy(data.logits).cuda()
    held = tuple(torch.as_tensor(part).cuda() for part in data.validation)
    chosen = data.fit(
        METHODS[method](), X=X, y=torch.from_numpy(data.y).cuda(), logits=logits, validation=held
    )
    found = chosen.select(12)
    assert found.indices.tolist() == expected.indices.tolist()
    assert isinstance(found.indices, np.ndarray)
    told = selection.KCenterGreedy(verbose=True).fit(X).select(12)
    assert told.indices.tolist() == selection.KCenterGreedy().fit(data.X).select(12).indices.tolist()


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", READS_X)
def test_rows_that_are_not_finite_are_named(everything, method):
    X = everything.X.copy()
    X[33, 2] = np.nan
    with pytest.raises(ValueError, match=r"row.*33"):
        everything.fit(METHODS[method](), X=X).select(5)


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if "logits" in kind.needs])
def test_logits_that_are_not_finite_are_named(everything, method):
    logits = everything.logits.copy()
    logits[33, 1] = np.inf
    with pytest.raises(ValueError, match=r"row 33"):
        everything.fit(METHODS[method](), logits=logits).select(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.fit(selection.EL2N(), y=d.y[:-1]), "y: expected 60 rows as X has, got 59"),
        (lambda d: d.fit(selection.EL2N(), y=d.y + 1), "y: expected classes below 3.*, got 3 at row"),
        (lambda d: d.fit(selection.EL2N(), y=d.y - 1), "y: expected classes of at least 0, got -1"),
        (lambda d: d.fit(selection.EL2N(), y=d.y + 0.5), "y: expected classes, got 0.5"),
        (lambda d: d.fit(selection.D2(), scores=d.scores[:5]), "scores: expected 60 rows as X has, got 5"),
        (lambda d: d.fit(selection.D2(), scores=np.full(60, np.nan)), "scores: expected numbers, got NaN"),
        (lambda d: d.fit(selection.Herding(), X=d.X[:, 0]), r"X: expected shape \[N, d\]"),
        (lambda d: d.fit(selection.Herding(), X=[d.X, d.X[:, :2]]), r"X\[1\]: expected float32 \[N, 5\]"),
        (lambda d: d.fit(selection.Random(balanced="even")).select(5), "balanced: expected one of"),
        (lambda d: d.fit(selection.Random(balanced=True), y=None), "y: expected some data"),
        (lambda d: d.fit(selection.EL2N(keep="both")).select(5), "keep: expected one of 'hard', 'easy'"),
        (
            lambda d: d.fit(selection.Glister(), validation=(d.X, d.y)),
            r"validation: expected \(X, logits, y\)",
        ),
        (lambda d: d.fit(selection.KCenterGreedy(init=[3, 3])).select(5), r"init.*: expected every row once"),
        (lambda d: d.fit(selection.KCenterGreedy(init=3, balanced=True)).select(5), "init: expected"),
        (lambda d: select("kcentre", d.X, k=1), "method: expected one of"),
        (lambda d: select("kcenter", d.X, k=1, gama=2), "params: expected one of .*, got 'gama'"),
        (lambda d: select("kcenter", d.X), "k: expected either k or ratio, got none"),
        (lambda d: select("kcenter", d.X, k=1, ratio=0.5), "k: expected either k or ratio, got both"),
        (lambda d: selection.Random().fit(), "X: expected some data"),
    ],
)
def test_bad_input(everything, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(everything)


def test_sharded_without_processes(everything):
    with pytest.raises(RuntimeError, match=r"sharded: expected an initialised torch.distributed"):
        selection.KCenterGreedy(sharded=True).fit(everything.X).select(1)


def test_an_empty_class_that_is_asked_to_contribute_is_named(everything):
    y = np.where(everything.y == 1, 2, everything.y)
    with pytest.raises(ValueError, match="balanced: expected members of every class, got none of class 1"):
        selection.Random(balanced="equal").fit(everything.X, y).select(10)
    assert len(selection.Random(balanced=True).fit(everything.X, y).select(10)) == 10


# ---- budgets -----------------------------------------------------------------------------------------------


def test_shares_round_halves_up():
    assert [budget_size(0.5, n) for n in (1, 3, 5, 7)] == [1, 2, 3, 4]
    assert budget_size(0.1, 5) == 1  # Python's round(0.5) is 0
    assert budget_size(1.0, 7) == 7
    assert budget_size(1, 7) == 1
    with pytest.raises(TypeError, match="budget: expected an integer or a share"):
        budget_size("all", 7)
    with pytest.raises(TypeError, match="budget: expected an integer or a share"):
        budget_size(True, 7)


def test_class_budgets_are_exact():
    draw = np.random.default_rng(0)
    for _ in range(50):
        counts = draw.integers(0, 40, size=draw.integers(1, 9))
        k = int(draw.integers(0, counts.sum() + 1))
        shares = class_budgets(counts, k)
        assert shares.sum() == k
        assert (shares <= counts).all()
        assert (np.abs(shares * counts.sum() - k * counts) < counts.sum()).all() or counts.sum() == 0
    assert class_budgets([5, 5, 5], 4).tolist() == [2, 1, 1]  # of equal remainders the smaller class
    assert class_budgets([1, 9, 30], 20, "equal").tolist() == [1, 9, 10]


# ---- values from elsewhere ---------------------------------------------------------------------------------


def test_digits_by_k_center(digits):
    chosen = select("kcenter", digits[0], k=20, init=0)
    expected = [0, 623, 1275, 75, 889, 1643, 683, 1001, 1113, 1290, 1115, 1512, 1024, 1742, 1727]
    assert chosen.indices.tolist() == [*expected, 673, 1344, 1705, 1660, 717]
    assert chosen.gains[-1] ** 2 == pytest.approx(2011, rel=1e-6)
    assert chosen.scores.max() ** 2 == pytest.approx(2011, rel=1e-6)


def test_digits_by_facility_location_and_graph_cut(digits):
    found = selection.FacilityLocation(weighted=True).fit(digits[0]).select(10)
    assert found.indices.tolist() == [945, 392, 1507, 793, 1417, 1039, 97, 1107, 1075, 867]
    assert found.info["objective"] == 8994542
    assert found.weights.tolist() == [165, 201, 185, 203, 162, 181, 196, 168, 176, 160]
    cut = select("graph_cut", digits[0], k=8)
    assert cut.indices.tolist() == [424, 148, 615, 1747, 1030, 1766, 818, 768]


def test_digits_by_herding_and_moderate(digits):
    X, y = digits
    zeros = np.flatnonzero(y == 0)
    chosen = select("herding", X[zeros], k=8)
    assert zeros[chosen.indices].tolist() == [1039, 335, 642, 1335, 1464, 1563, 1667, 571]
    assert chosen.gains[-1] == pytest.approx(3.1940120, abs=1e-7)
    moderate = select("moderate", X, labels=y, k=100, balanced=True)
    assert moderate.scores.sum() == pytest.approx(47928.5191818, rel=1e-6)
    assert moderate.indices.sum() == 85300
    assert np.sort(moderate.indices)[:10].tolist() == [43, 49, 52, 66, 70, 100, 113, 120, 122, 164]
    assert np.bincount(y[moderate.indices]).tolist() == [10] * 10


def test_digits_by_d2(digits):
    X, y = digits
    scores = select("moderate", X, labels=y, k=1).scores[:300]
    chosen = select("d2", X[:300] / 16, scores=scores / scores.max(), k=10, neighbors=5, gamma=1 / 64)
    assert chosen.indices.tolist() == [151, 131, 51, 200, 186, 77, 235, 90, 50, 165]


def test_scores_by_hand():
    Z = np.array([[2, 0, -1], [0, 0, 0], [-3, 5, 1]], np.float32)
    y, h = np.array([0, 2, 0]), np.array([[1, 2], [0, 0], [3, 4]], np.float32)
    close = {"rtol": 1e-6, "atol": 1e-7}
    expected = {
        "el2n": [0.1980037227, 0.8164965809, 1.4012069032],
        "grand": [0.4850080877, 0.8164965809, 7.1447813421],
        "entropy": [0.5242666167, 1.0986122887, 0.0930350130],
        "margin": [0.7295995351, 0, 0.9637101061],
    }
    for method, values in expected.items():
        np.testing.assert_allclose(select(method, h, Z, y, k=0).scores, values, **close)
