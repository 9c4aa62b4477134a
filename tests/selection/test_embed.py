"""Features, logits and labels of a model and a loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold import selection
from tenfold.selection import embed

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3),
        torch.nn.BatchNorm2d(3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(48, 4),
    )


def images(n=23):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 6, 6, generator=draw), torch.randint(0, 4, (n,), generator=draw)


class Numbered(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i], i


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("to_files", [False, True])
def test_features_are_what_the_last_layer_reads(tmp_path, shuffle, to_files):
    model, (x, y) = network(), images()
    model.train()
    model[1].eval()  # modes are left as they are, module by module
    data = Numbered(x, y) if shuffle else torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=shuffle)
    statistics = model[1].running_mean.clone()
    folder = tmp_path / "out" if to_files else None
    found = embed(model, loader, folder=folder)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    assert torch.equal(model[1].running_mean, statistics)
    with torch.no_grad():
        model.eval()
        np.testing.assert_allclose(found.features, model[:4](x), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.logits, model(x), rtol=1e-5, atol=1e-6)
    assert found.labels.tolist() == y.tolist()
    assert isinstance(found.features, np.memmap) is to_files
    if to_files:
        assert sorted(p.name for p in folder.iterdir()) == ["features.npy", "logits.npy"]
    own = selection.GraNd().fit(found.features, found.labels, logits=found.logits).select(5)
    full = torch.nn.Linear(48, 4)
    full.load_state_dict(model[4].state_dict())
    hidden = torch.utils.data.TensorDataset(torch.tensor(np.array(found.features)), y)
    norms = selection.grand_scores(full, torch.utils.data.DataLoader(hidden, batch_size=6))
    np.testing.assert_allclose(own.scores, norms, rtol=1e-4)


def test_a_layer_by_name_and_half_precision():
    model, (x, y) = network(), images()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    found = embed(model, loader, layer="3", dtype=torch.float16)
    assert found.features.dtype == np.float16
    assert found.features.shape == (23, 48)
    assert embed(model, loader, layer=model[3]).features.shape == (23, 48)
    assert embed(model, torch.utils.data.DataLoader(list(x), batch_size=5)).labels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "head"}, "layer: expected the name of a module of the model, got 'head'"),
        ({"layer": torch.nn.Linear(2, 2)}, "layer: expected a layer that is called once .*, got 0 calls"),
        ({"dtype": torch.float64}, "dtype: expected one of"),
    ],
)
def test_bad_input_leaves_no_file(tmp_path, options, message):
    x, y = images()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    with pytest.raises((ValueError, TypeError), match=message):
        embed(network(), loader, folder=tmp_path, **options)
    assert not list(tmp_path.iterdir())
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5, shuffle=True)
    with pytest.raises(ValueError, match="loader: expected a loader in the order of its data set"):
        embed(network(), shuffled)
    with pytest.raises(ValueError, match=r"layer: expected a module \(the model has no torch.nn.Linear\)"):
        embed(torch.nn.ReLU(), loader)
