"""Selectors as scikit-learn's estimators: parameters, clone, Pipeline, sample weights."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold import selection
from tenfold.selection import METHODS

base = pytest.importorskip("sklearn.base")
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.validation import check_is_fitted  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


@pytest.mark.parametrize("method", METHODS)
def test_parameters_and_clones(method, everything):
    selector = METHODS[method](budget=0.2, seed=4)
    copy = base.clone(everything.fit(selector))
    assert type(copy) is type(selector)
    assert copy.get_params() == selector.get_params()
    assert not hasattr(copy, "_inputs")  # a clone is not fitted
    assert copy.set_params(seed=9) is copy
    assert (copy.seed, selector.seed) == (9, 4)
    with pytest.raises(ValueError, match=r"params: expected one of .*, got 'sed'"):
        copy.set_params(sed=1)
    assert repr(METHODS[method](seed=4)).startswith(f"{METHODS[method].__name__}(budget=None")


def test_fitted_is_told_apart(everything):
    selector = selection.KCenterGreedy(budget=5)
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        check_is_fitted(selector)
    check_is_fitted(selector.fit(everything.X))
    assert selector.n_features_in_ == 5


@pytest.mark.parametrize(
    "method", ["kcenter", "facility_location", "herding", "moderate", "random", "kmeans"]
)
def test_the_end_of_a_pipeline(method, everything):
    scaled = StandardScaler().fit_transform(everything.X)
    pipeline = make_pipeline(StandardScaler(), METHODS[method](budget=12))
    rows = pipeline.fit_transform(everything.X)
    expected = METHODS[method]().fit(scaled).select(12)
    assert pipeline[-1].indices_.tolist() == expected.indices.tolist()
    np.testing.assert_array_equal(rows, scaled[expected.indices])
    np.testing.assert_array_equal(pipeline.transform(everything.X), rows)
    balanced = make_pipeline(StandardScaler(), METHODS[method](budget=12, balanced="equal"))
    balanced.fit_transform(everything.X, everything.y)
    assert np.bincount(everything.y[balanced[-1].indices_]).tolist() == [4, 4, 4]


def test_other_rows_have_no_answer(everything):
    selector = selection.KCenterGreedy(budget=5).fit(everything.X)
    with pytest.raises(ValueError, match=r"X: expected the 60 rows it was fitted on .*, got 7 rows"):
        selector.transform(everything.X[:7])


def test_rows_and_labels_together(everything):
    X, y = selection.KCenterGreedy(budget=0.2).fit_resample(everything.X, everything.y)
    assert X.shape == (12, 5)
    assert len(y) == 12
    model = LogisticRegression().fit(X, y)
    assert model.score(everything.X, everything.y) > 0.5


def test_weights_for_an_estimator(everything):
    chosen = everything.fit(selection.CRAIG(balanced=True)).select(15)
    weighted = LogisticRegression().fit(everything.X, everything.y, sample_weight=chosen.sample_weight())
    rows = chosen.indices
    alone = LogisticRegression().fit(everything.X[rows], everything.y[rows], sample_weight=chosen.weights)
    np.testing.assert_allclose(weighted.coef_, alone.coef_, atol=1e-3)


def test_support_and_frames(everything):
    selector = selection.KCenterGreedy(budget=6).fit(everything.X)
    mask, rows = selector.get_support(), selector.get_support(indices=True)
    assert np.flatnonzero(mask).tolist() == rows.tolist() == sorted(selector.indices_)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(everything.X, columns=list("abcde"))
    part = selection.KCenterGreedy(budget=6).fit_transform(frame)
    assert list(part.columns) == list("abcde")
    assert part.index.tolist() == selector.indices_.tolist()


def test_choosing_on_the_inner_folds_of_a_search(everything):
    """A selector in front of an estimator that takes weights: scikit-learn's own way through a search."""
    from sklearn.model_selection import GridSearchCV

    class Weighted(base.ClassifierMixin, base.BaseEstimator):
        def __init__(self, budget=0.5):
            self.budget = budget

        def fit(self, X, y):
            chosen = selection.KCenterGreedy(balanced=True, weighted=True).fit(X, y).select(self.budget)
            self.model_ = LogisticRegression().fit(X, y, sample_weight=chosen.sample_weight())
            self.classes_ = self.model_.classes_
            return self

        def predict(self, X):
            return self.model_.predict(X)

    search = GridSearchCV(Weighted(), {"budget": [0.2, 0.6]}, cv=3).fit(everything.X, everything.y)
    assert search.best_score_ > 0.5
