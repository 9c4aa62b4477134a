"""The batched branches against one module per branch, and whose statistics are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tenfold.eeg.network import Network, reverse_gradient


def modules(net: Network) -> list[nn.Sequential]:
    """The branches as ordinary modules with the same weights."""
    made = []
    for j in range(net.branches):
        linear, bn, out = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, net.classes)
        with torch.no_grad():
            linear.weight.copy_(net.w1[j].T)
            linear.bias.copy_(net.b1[j])
            bn.weight.copy_(net.gain[j])
            bn.bias.copy_(net.shift[j])
            out.weight.copy_(net.w2[j].T)
            out.bias.copy_(net.b2[j])
        made.append(nn.Sequential(linear, bn, nn.LeakyReLU(0.01), out))
    return made


def net_of(branches: int, bn: str = "shared") -> Network:
    torch.manual_seed(3)
    net = Network(7, 4, branches, bn=bn)
    with torch.no_grad():
        net.gain.uniform_(0.5, 1.5)
        net.shift.uniform_(-1, 1)
    return net


def test_branches_are_modules_side_by_side() -> None:
    net = net_of(3)
    apart = modules(net)
    own, shared = torch.randn(3, 11, 64), torch.randn(9, 64)
    _, logits = net.head(own)
    _, target = net.head(shared, target=True)
    for j, module in enumerate(apart):
        torch.testing.assert_close(logits[j], module(own[j]))
        torch.testing.assert_close(target[j], module(shared))
    net.eval()
    _, logits = net.head(own)
    for j, module in enumerate(apart):
        torch.testing.assert_close(logits[j], module.eval()(own[j]))  # the running statistics moved alike


def test_some_branches_alone_move_only_their_statistics() -> None:
    net = net_of(4)
    before = net.mean.clone()
    _, all_logits = net.eval().head(torch.ones(5, 64))
    _, logits = net.head(torch.ones(5, 64), slice(3, 4))
    torch.testing.assert_close(logits, all_logits[3:])
    net.train().head(torch.randn(1, 5, 64), slice(3, 4))
    assert torch.equal(net.mean[:3], before[:3])
    assert not torch.equal(net.mean[3], before[3])


@pytest.mark.parametrize(("bn", "moves"), [("shared", True), ("target", False)])
def test_whose_rows_move_the_statistics(bn: str, moves: bool) -> None:
    net = net_of(2, bn)
    before = net.var.clone()
    net.head(torch.randn(2, 8, 64))
    assert torch.equal(net.var, before) is not moves
    now = net.var.clone()
    net.head(torch.randn(8, 64), target=True)
    assert not torch.equal(net.var, now)


def test_a_reversed_gradient() -> None:
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    y = reverse_gradient(x, 0.25)
    assert torch.equal(y, x)
    (y * torch.tensor([1.0, 4.0])).sum().backward()
    assert torch.equal(x.grad, torch.tensor([-0.25, -1.0]))


def test_what_a_network_refuses() -> None:
    with pytest.raises(ValueError, match=r"classes: expected .*got 1"):
        Network(3, 1)
    with pytest.raises(ValueError, match=r"bn: expected one of .*got 'none'"):
        Network(3, 2, bn="none")
    with pytest.raises(ValueError, match=r"branches: expected .*got 0"):
        Network(3, 2, 0)
