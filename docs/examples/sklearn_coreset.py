"""scikit-learn: a coreset as the last step of a pipeline, and what a classifier makes of so few labels.

Only the chosen digits would have to be labelled: the pipeline sees none of the labels.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from tenfold.selection import FacilityLocation, KCenterGreedy, Random

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0, stratify=y)


def accuracy(selector):
    """Of the nearest chosen digit, on the digits that were held out."""
    pipeline = make_pipeline(MinMaxScaler(), PCA(20, random_state=0), selector)
    rows = pipeline.fit_transform(X)
    labels = y[selector.indices_]
    return KNeighborsClassifier(1).fit(rows, labels).score(pipeline[:-1].transform(X_test), y_test)


for budget in (25, 50, 100):
    drawn = [accuracy(Random(budget=budget, seed=seed)) for seed in range(20)]
    print(
        f"{budget} labels: facility location {accuracy(FacilityLocation(budget=budget)):.3f}, "
        f"k-center {accuracy(KCenterGreedy(budget=budget)):.3f}, "
        f"random {np.mean(drawn):.3f} (best of 20: {max(drawn):.3f})"
    )
