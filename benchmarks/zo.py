"""Zeroth-order passes: single passes, all passes of a step, whole steps, bare sampling.

Peers draw their directions from torch's own generator (mezo normals, also where ours draws signs), so their
weights are other numbers; mean, variance and size of the change are compared. The reference draws ours, and
must agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .harness import (
    Agreement,
    Case,
    Moments,
    Side,
    Work,
    Workload,
    change_moments,
    compare_moments,
    compare_values,
)
from .installed import missing
from .peers import compiled, fzoo, mezo
from .shapes import OPT_125M, OPT_TINY, fill, opt_parameters

EPS = 1e-3
LR = 1e-6
PROJECTED_GRAD = 1.7
SEED = 42
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# What rounding of weights to their dtype may add to the relative difference of two variances
ALLOWANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}
SWEEP = {"1e4": 10**4, "1e5": 10**5, "1e6": 10**6, "1e7": 10**7, "1e8": 10**8}
LONGEST_REFERENCE = 10**6
TINY = 4096

Shapes = list[tuple[str, tuple[int, ...]]]


def _backend(op: str, device: torch.device) -> str:
    """Backend that ours takes, with the instruction set on the CPU."""
    from tenfold._backend import chosen_backend

    name = chosen_backend(op, device.type)
    if name == "cpu":
        from tenfold import _native

        isa: Any = _native.cpu
        return f"cpu ({isa.isa_used()})"
    return name


def _version() -> str:
    import tenfold

    return str(tenfold.__version__)


def _reference_side(
    run: Callable[[], Any], agree: Callable[[Any, Any], Agreement], why_not: str | None = None
) -> Side:
    return Side(
        "reference",
        run,
        version=f"plain PyTorch, {_version()}",
        agree=agree,
        prepare=lambda: why_not,
        kind="reference",
        fewest=1,
        measure_memory=False,
    )


def _same_bits(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> Agreement:
    return compare_values(ours, theirs, 0.0)


# -- passes over a list of weights ------------------------------------------------------------------


class Weights:
    """Named tensors, their first values, and streams 0, 1, 2, ..."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> None:
        self.tensors = fill(shapes, dtype, device)
        self.first = [t.clone() for t in self.tensors]
        self.named = [(name, t) for (name, _), t in zip(shapes, self.tensors, strict=True)]
        self.streams = list(range(len(self.tensors)))
        self.count = sum(t.numel() for t in self.tensors)
        self.bytes = sum(t.numel() * t.element_size() for t in self.tensors)

    def reset(self) -> None:
        for tensor, value in zip(self.tensors, self.first, strict=True):
            tensor.copy_(value)

    def copies(self, _: object = None) -> list[torch.Tensor]:
        return [t.detach().clone() for t in self.tensors]

    def same_change(
        self, allowance: float, ours: list[torch.Tensor], theirs: list[torch.Tensor]
    ) -> Agreement:
        return compare_moments(
            change_moments(ours, self.first), change_moments(theirs, self.first), allowance
        )


def _reference_pass(weights: Weights, dist: str) -> None:
    from tenfold.kernels.zo.zo_reference import chain_

    chain_(weights.tensors, None, weights.streams, [SEED], [0], [EPS], [dist])


def _our_pass(weights: Weights, dist: str) -> None:
    from tenfold.ops import zo_perturb_

    zo_perturb_(weights.tensors, weights.streams, SEED, 0, EPS, dist=dist)


def _compiled_side(weights: Weights, dtype: torch.dtype, device: torch.device) -> Side:
    def prepare() -> None:
        compiled.compiled_gaussian_pass(dtype, device)

    # z itself differs by a few 1e-7; in half precision such a difference can tip a rounding, one unit of
    # the last place of a norm weight near 1
    tolerance = {torch.float32: 2.5e-7, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[dtype]
    return Side(
        "torch.compile",
        lambda: compiled.perturb(weights.tensors, SEED, 0, EPS),
        version=f"torch {torch.__version__}",
        agree=lambda ours, theirs: compare_values(ours, theirs, tolerance),
        prepare=prepare,
        kind="compiled",
        fewest=2,
        measure_memory=False,
    )


def _perturb(
    shapes: Shapes,
    tiny_shapes: Shapes,
    dtype_name: str,
    dist: str,
    peer_names: Sequence[str],
    with_compiled: bool,
    sweep: bool,
    device: torch.device,
    tiny: bool,
) -> Workload:
    dtype = DTYPES[dtype_name]
    weights = Weights(tiny_shapes if tiny else shapes, dtype, device)
    agree = partial(weights.same_change, ALLOWANCE[dtype])
    passes = {"mezo": mezo, "fzoo": fzoo}
    peers = [
        Side(
            name,
            partial(passes[name].perturb, weights.named, SEED, 1, EPS),
            version=passes[name].VERSION,
            agree=agree,
        )
        for name in peer_names
    ]
    why_not = None
    if sweep and weights.count > LONGEST_REFERENCE:
        why_not = "runs up to 1e6 elements in sweeps; opt125m cases run it at full size"
    others = [*peers, _reference_side(partial(_reference_pass, weights, dist), _same_bits, why_not)]
    if with_compiled:
        others.append(_compiled_side(weights, dtype, device))
    if sweep:
        for side in others:
            side.measure_memory = False
    return Workload(
        ours=Side(
            "tenfold",
            partial(_our_pass, weights, dist),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "zo_chain_", device),
            measure_memory=not sweep,
        ),
        others=others,
        work=Work(
            bytes=2.0 * weights.bytes,
            footprint=weights.bytes if sweep else None,
            normals=weights.count if dist == "gaussian" else 0,
        ),
        reset=weights.reset,
        keep=weights.copies,
        note=f"one pass theta += {EPS} z over {len(weights.tensors)} tensors, {weights.count:,} elements",
    )


def _our_step_passes(weights: Weights) -> None:
    from tenfold.ops import zo_perturb_, zo_restore_update_

    zo_perturb_(weights.tensors, weights.streams, SEED, 0, EPS)
    zo_perturb_(weights.tensors, weights.streams, SEED, 0, -2 * EPS)
    zo_restore_update_(
        weights.tensors, weights.streams, SEED, 0, eps=EPS, lr=LR, projected_grad=PROJECTED_GRAD
    )


def _mezo_step_passes(weights: Weights) -> None:
    for scale in (1, -2, 1):
        mezo.perturb(weights.named, SEED, scale, EPS)
    mezo.update(weights.named, SEED, LR, PROJECTED_GRAD)


def _step_passes(shapes: Shapes, tiny_shapes: Shapes, device: torch.device, tiny: bool) -> Workload:
    weights = Weights(tiny_shapes if tiny else shapes, torch.float32, device)
    # A step changes a weight by 1.7e-6, restoring rounds it by up to 1e-9 (norm weights: 6e-8)
    agree = partial(weights.same_change, 5e-3)
    return Workload(
        ours=Side(
            "tenfold",
            partial(_our_step_passes, weights),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "zo_chain_", device),
        ),
        others=[
            Side("mezo", partial(_mezo_step_passes, weights), version=mezo.VERSION, agree=agree),
            _reference_side(lambda: None, _same_bits, "its single pass is compared in the zo.perturb cases"),
        ],
        work=Work(bytes=6.0 * weights.bytes, normals=3.0 * weights.count),
        reset=weights.reset,
        keep=weights.copies,
        note="+eps, -2 eps, restore and update; mezo: three perturbations and an update",
    )


# -- a whole step with real forward passes ----------------------------------------------------------


class OptModel:
    """A randomly initialised OPT from transformers, a batch of token ids, and its published training loss."""

    def __init__(self, sizes: dict[str, int], batch: int, length: int, device: torch.device) -> None:
        from transformers import OPTConfig, OPTForCausalLM

        config = OPTConfig(
            vocab_size=sizes["vocab"],
            max_position_embeddings=sizes["positions"] - 2,
            hidden_size=sizes["hidden"],
            word_embed_proj_dim=sizes["hidden"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=12,
            ffn_dim=sizes["ffn"],
        )
        with device:  # drawing the first weights on the CPU takes seconds
            model: Any = OPTForCausalLM(config)
        self.model = model.to(device=device, dtype=torch.float32).eval()
        shapes = [(name, tuple(p.shape)) for name, p in self.model.named_parameters()]
        self.named = list(self.model.named_parameters())
        self.first = fill(shapes, torch.float32, device)
        generator = torch.Generator().manual_seed(7)
        self.ids = torch.randint(4, sizes["vocab"], (batch, length), generator=generator).to(device)
        self.labels = torch.randint(0, 2, (batch // 2,), generator=generator)
        self.option_len = [1] * batch

    @torch.no_grad()
    def reset(self) -> None:
        for (_, parameter), value in zip(self.named, self.first, strict=True):
            parameter.copy_(value)

    def lm_loss(self) -> torch.Tensor:
        """Next-token loss over all positions, logits of the whole vocabulary."""
        loss: torch.Tensor = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        return loss

    def lm_loss_from_hidden(self) -> torch.Tensor:
        """The same loss by tenfold.ops.option_loss: every token an option token, no logits in memory."""
        from tenfold.ops import option_loss

        hidden = self.model.model(input_ids=self.ids, use_cache=False).last_hidden_state
        head = self.model.lm_head
        tokens = [self.ids.shape[1] - 1] * self.ids.shape[0]
        return option_loss(hidden, head.weight, head.bias, self.ids, tokens, mode="lm").loss

    def option_loss_from_logits(self) -> torch.Tensor:
        """Two-option classification loss as MeZO computes it: log-softmax of all logits first."""
        logits = self.model(input_ids=self.ids, use_cache=False).logits
        logp = torch.log_softmax(logits[:, :-1], dim=-1)
        targets = self.ids[:, 1:]
        at_option = torch.zeros_like(targets, dtype=torch.bool)
        for row, length in enumerate(self.option_len):
            at_option[row, -length:] = True
        picked = torch.gather(logp, -1, targets.unsqueeze(-1)).squeeze(-1)
        scores = (picked * at_option).sum(-1) / at_option.sum(-1)
        return torch.nn.functional.cross_entropy(scores.view(-1, 2), self.labels.to(scores.device))

    def option_loss(self) -> torch.Tensor:
        """The same loss by tenfold.ops.option_loss: logits only where an option's tokens are predicted."""
        from tenfold.ops import option_loss

        hidden = self.model.model(input_ids=self.ids, use_cache=False).last_hidden_state
        head = self.model.lm_head
        found = option_loss(
            hidden, head.weight, head.bias, self.ids, self.option_len, num_options=2, labels=self.labels
        )
        return found.loss

    def forward_flops(self, head_positions: int) -> float:
        """Multiply-adds times two of the matrix products of one forward."""
        hidden, layers, ffn = (
            self.first[0].shape[1],
            self.model.config.num_hidden_layers,
            self.model.config.ffn_dim,
        )
        tokens, length = self.ids.numel(), self.ids.shape[1]
        per_layer = 2.0 * tokens * (4 * hidden * hidden + 2 * hidden * ffn) + 4.0 * tokens * length * hidden
        return layers * per_layer + 2.0 * head_positions * hidden * self.first[0].shape[0]


class StepOutcome:
    """Mean of a step's two losses, and moments of the change in units of lr times projected gradient."""

    def __init__(self, loss: float, projected_grad: float, model: OptModel) -> None:
        change = change_moments([p for _, p in model.named], model.first)
        unit = LR * projected_grad
        self.loss = loss
        self.change = Moments(change.count, change.mean / unit, change.variance / unit**2)


def _same_step(model: OptModel, our_loss: Callable[[], Any], their_loss: Callable[[], Any]) -> Any:
    """Compares losses at the untouched weights (relative 1e-4), probes' mean losses (5 %: they depend
    on the direction drawn), and the change."""

    def agree(ours: StepOutcome, theirs: StepOutcome) -> Agreement:
        model.reset()
        with torch.inference_mode():
            first, second = float(our_loss()), float(their_loss())
        loss_gap = abs(first - second) / abs(second)
        probe_gap = abs(ours.loss - theirs.loss) / abs(theirs.loss)
        moments = compare_moments(ours.change, theirs.change, 1e-2, "change / (lr * projected gradient)")
        same = moments.agrees and loss_gap <= 1e-4 and probe_gap <= 5e-2
        how = (
            f"{moments.how}; loss at the same weights {first:.6f} and {second:.6f}; "
            f"mean loss of the two probes {ours.loss:.4f} and {theirs.loss:.4f}"
        )
        return Agreement(same, max(moments.max_error, loss_gap), moments.tolerance, how)

    return agree


_STEP_NOTES = {
    "": "; one language-model loss on both sides, ours by tenfold.ops.option_loss, no logits in memory",
    "-sameforward": "; both sides call the model's own forward and loss: the gain of the weight passes alone",
    "-optionhead": "; two-option loss on both sides, ours computes logits at option positions only",
    "-dual": "; both sides call the model's own forward, ours with restore='dual': the weights in memory are "
    "never perturbed, an interrupted step leaves them as they were",
}


def _step(variant: str, device: torch.device, tiny: bool) -> Workload:
    model = OptModel(OPT_TINY if tiny else OPT_125M, *((4, 8) if tiny else (16, 32)), device)
    option_head = variant == "-optionhead"
    our_loss, their_loss = {
        "": (model.lm_loss_from_hidden, model.lm_loss),
        "-sameforward": (model.lm_loss, model.lm_loss),
        "-optionhead": (model.option_loss, model.option_loss_from_logits),
        "-dual": (model.lm_loss, model.lm_loss),
    }[variant]
    restore = "dual" if variant == "-dual" else "arithmetic"  # what mezo does

    def our_step() -> tuple[float, float]:
        from tenfold.optim import ZOSGD

        optimizer = ZOSGD(
            model.model.parameters(), lr=LR, eps=EPS, seed=SEED, streams=model.model, restore=restore
        )
        loss = float(optimizer.step(our_loss))
        assert optimizer.last_step is not None
        return loss, optimizer.last_step.projected_grads[0]

    def their_step() -> tuple[float, float]:
        plus, minus, projected_grad = mezo.step(model.named, their_loss, SEED, eps=EPS, lr=LR)
        return (plus + minus) / 2, projected_grad

    def forwards() -> None:
        with torch.inference_mode():
            our_loss()
            our_loss()

    count = sum(t.numel() for t in model.first)
    positions = model.ids.shape[0] if option_head else model.ids.numel()
    return Workload(
        ours=Side(
            "tenfold",
            our_step,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "zo_chain_", device),
        ),
        others=[
            Side("mezo", their_step, version=mezo.VERSION, agree=_same_step(model, our_loss, their_loss)),
            _reference_side(lambda: None, _same_bits, "its single pass is compared in the zo.perturb cases"),
        ],
        parts=[Side("forwards", forwards, kind="part")],
        work=Work(bytes=24.0 * count, normals=3.0 * count, flops=2 * model.forward_flops(positions)),
        reset=model.reset,
        keep=lambda result: StepOutcome(result[0], result[1], model),
        note="whole step, q = 1; ours tenfold.optim.ZOSGD; parts.forwards: our two forward passes alone"
        + _STEP_NOTES[variant],
    )


# -- sampling ---------------------------------------------------------------------------------------


def _torch_sample(dist: str, n: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dist == "gaussian":
        return torch.randn(n, dtype=dtype, device=device)
    if dist == "uniform":
        return torch.rand(n, dtype=dtype, device=device)
    return torch.randint(0, 2, (n,), dtype=dtype, device=device) * 2 - 1


def _sample(dist: str, dtype_name: str, n: int, device: torch.device, tiny: bool) -> Workload:
    dtype = DTYPES[dtype_name]
    count = TINY if tiny else n

    def ours() -> torch.Tensor:
        from tenfold.ops import zo_sample

        return zo_sample(SEED, 0, 0, n=count, dist=dist, dtype=dtype, device=device)

    def reference() -> torch.Tensor:
        from tenfold.kernels.zo.zo_reference import sample

        return sample(SEED, 0, 0, 0, count, dist, dtype, device)

    def agree(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> Agreement:
        return compare_moments(change_moments(mine), change_moments(theirs), ALLOWANCE[dtype], "values")

    width = torch.empty(0, dtype=dtype).element_size()
    return Workload(
        ours=Side(
            "tenfold",
            ours,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "zo_sample", device),
            measure_memory=False,
        ),
        others=[
            Side(
                "torch",
                partial(_torch_sample, dist, count, dtype, device),
                version=torch.__version__,
                agree=agree,
                measure_memory=False,
            ),
            _reference_side(reference, _same_bits),
        ],
        work=Work(bytes=float(width * count), normals=count if dist == "gaussian" else 0),
        keep=lambda tensor: [tensor],
        note="peer: torch.randn, torch.rand, or torch.randint * 2 - 1",
    )


def cases() -> list[Case]:
    """All cases of the family."""
    from . import zo_state  # it builds on this module

    opt, tiny = opt_parameters(**OPT_125M), opt_parameters(**OPT_TINY)
    found = []
    for dist, dtype, peers, with_compiled in (
        ("gaussian", "f32", ["mezo"], True),
        ("gaussian", "bf16", ["mezo"], True),
        ("gaussian", "f16", ["mezo"], False),
        ("rademacher", "f32", ["fzoo", "mezo"], False),
        ("rademacher", "bf16", ["fzoo"], False),
    ):
        build = partial(_perturb, opt, tiny, dtype, dist, peers, with_compiled, False)
        found.append(Case(f"zo.perturb.{dist}.{dtype}.opt125m", build))
    found.append(Case("zo.step_passes.f32.opt125m", partial(_step_passes, opt, tiny)))
    needs = partial(missing, "transformers")
    found += [Case(f"zo.step.f32.opt125m-b16x32{v}", partial(_step, v), needs) for v in _STEP_NOTES]
    found += zo_state.cases()
    for dist, dtype in (("gaussian", "f32"), ("gaussian", "bf16"), ("rademacher", "f32"), ("uniform", "f32")):
        found.append(Case(f"zo.sample.{dist}.{dtype}.n1e7", partial(_sample, dist, dtype, 10**7)))
    for dist, peers, with_compiled in (("gaussian", ["mezo"], True), ("rademacher", ["fzoo"], False)):
        for label, n in SWEEP.items():
            build = partial(
                _perturb, [("w", (n,))], [("w", (TINY,))], "f32", dist, peers, with_compiled, True
            )
            found.append(Case(f"zo.perturb.{dist}.f32.n{label}", build, sweep=(f"zo.perturb.{dist}.f32", n)))
    return found
