"""The loss of a step: the method's forget term plus gamma times the retain term, on rows of a subject.

What a method needs of the model before unlearning is remembered when the objective is made, and the model
itself
is not kept: one number per row for NPO and DPO; for KL and UNDIAL the hidden states at the labelled
positions, from which the whole distribution follows through the unembedding, or the likeliest tokens alone
(:mod:`tenfold.llm.unlearn.topk`); for RMU activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.llm.unlearn import fused, logit_losses, losses, methods
from tenfold.llm.unlearn import topk as topk_module
from tenfold.llm.unlearn.losses import Head
from tenfold.llm.unlearn.subject import Batch, Subject

__all__ = ["RETAIN_LOSSES", "Objective"]

RETAIN_LOSSES = ("nll", "kl", "activation", "soul_kl", "none")


class Objective:
    """Loss of one method on the sets ``forget``, ``retain`` (and ``refusal``, ``random``) of a subject.

    Args:
        subject: holds the sets; the model as it is before unlearning.
        method: a name of :data:`tenfold.llm.unlearn.methods.METHODS`.
        gamma: weight of the retain term; None for the method's.
        forget_weight: weight of the forget term.
        retain_loss: one of :data:`RETAIN_LOSSES`; None for the method's. ``"soul_kl"`` is the cross-entropy
            that SOUL's code calls KL, over all real positions.
        options: the method's own numbers in place of its defaults.
        seed: of RMU's control vector.
        topk: tokens per position that KL and UNDIAL keep of the model before unlearning; 0 keeps its hidden
            states, and a copy of its unembedding where that is trained.
        topk_file: where the tokens are kept between runs (safetensors): read if it is there, else written.

    Raises:
        ValueError: an unknown name or option; no retain rows where the retain term needs them.
    """

    def __init__(
        self,
        subject: Subject,
        method: str,
        *,
        gamma: float | None = None,
        forget_weight: float = 1.0,
        retain_loss: str | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 0,
        topk: int = 0,
        topk_file: Path | None = None,
    ) -> None:
        known = methods.find(method)
        self.subject, self.method, self.forget_weight = subject, method, forget_weight
        self.gamma = known.gamma if gamma is None else gamma
        self.retain_loss = retain_loss or known.retain
        if self.retain_loss not in RETAIN_LOSSES:
            names = ", ".join(RETAIN_LOSSES)
            raise ValueError(f"retain_loss: expected one of {names}, got {self.retain_loss!r}")
        unknown = sorted(set(options or {}) - set(known.defaults))
        if unknown:
            raise ValueError(
                f"options: expected {sorted(known.defaults) or 'none'} for {method}, got {unknown}"
            )
        self.options = {**known.defaults, **(options or {})}
        self.dual = self.gamma  # PDU's multiplier
        if self.needs_retain and "retain" not in subject:
            raise ValueError(f"retain: expected at least one row for {method}, got an empty set")
        for name in known.sets:
            if name not in subject:
                raise ValueError(f"{name}: expected a set of rows for {method}, got none")
        self.topk = self._check_topk(topk)
        self._remember(known, seed, topk_file)

    @property
    def needs_retain(self) -> bool:
        """Whether a step reads retain rows."""
        return self.retain_loss != "none" or self.method in ("ft", "l1")

    def loss(
        self, forget: Sequence[int], retain: Sequence[int], gamma: float | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """``(loss, {"forget": ..., "retain": ...})`` of rows by their index.

        Args:
            gamma: retain weight of this step, where it is not constant.
        """
        weight = self.dual if self.method == "pdu" else self.gamma if gamma is None else gamma
        if self._fused:
            return self._both(forget, retain, weight)
        total, parts = torch.zeros((), device=self.subject.device), {}
        if self.method not in ("ft", "l1"):
            term = _FORGET[self.method](self, forget)
            total, parts["forget"] = total + self.forget_weight * term, float(term.detach())
        if self.retain_loss != "none":
            term = self._retain(retain)
            # FT and l1 have the retain term alone, unweighted
            scale = 1.0 if self.method in ("ft", "l1") else weight
            total, parts["retain"] = total + scale * term, float(term.detach())
        if self.method == "l1":
            term = losses.l1(list(self.subject.parameters.values()))
            total, parts["l1"] = total + self.options["alpha"] * term, float(term.detach())
        return total, parts

    @property
    def _fused(self) -> bool:
        """Whether both terms are sums over tokens or sequences, for which one visit to the head is enough."""
        per_sequence = self.options.get("per", "sequence") == "sequence"
        return self.method in fused.FUSED and per_sequence and self.retain_loss in ("nll", "none")

    def _both(
        self, forget: Sequence[int], retain: Sequence[int], gamma: float
    ) -> tuple[Tensor, dict[str, float]]:
        subject = self.subject
        name = {"po": "refusal", "rl": "random"}.get(self.method, "forget")
        rows = subject.labelled(subject.batch(name, forget))
        kept = None if self.retain_loss == "none" else subject.labelled(subject.batch("retain", retain))
        ref = self._ref("forget", forget) if self.method == "npo" else None
        weights = {"forget_weight": self.forget_weight, "gamma": gamma}
        return fused.loss(self.method, self.options, rows, kept, subject.head, ref_nll=ref, **weights)

    def after_step(self, retain_loss: float) -> None:
        """PDU's multiplier moves by how far the retain loss of the step is above its bound."""
        if self.method == "pdu":
            self.dual = losses.dual_step(
                self.dual, retain_loss, bound=self.options["bound"], step_size=self.options["dual_step_size"]
            )

    # -- reference -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _remember(self, known: methods.Method, seed: int, topk_file: Path | None) -> None:
        subject = self.subject
        self._nll: dict[str, tuple[Tensor, Tensor]] = {}
        self._hidden: dict[str, list[Tensor]] = {}
        self._acts: dict[str, list[Tensor]] = {}
        if "nll" in known.reference:
            for name in ("forget", *known.sets):
                self._nll[name] = subject.nll(name)
        everywhere = self.retain_loss == "soul_kl"
        if self.topk:
            self._topk = topk_module.remember(
                subject, methods.reads_distribution(self.method, self.retain_loss), self.topk, topk_file
            )
        elif "hidden" in known.reference:
            self._hidden["forget"] = self._states("forget", everywhere and self.method == "kl")
        if self.retain_loss in ("kl", "soul_kl") and not self.topk:
            self._hidden["retain"] = self._states("retain", everywhere)
        if self._hidden:
            head = subject.head
            changes = any(head.weight is p for p in subject.parameters.values())
            kept = head.weight.detach().clone() if changes else head.weight.detach()
            bias = None if head.bias is None else head.bias.detach().clone()
            self._head = Head(kept, bias, head.softcap)
        if self.method == "rmu" or self.retain_loss == "activation":
            block = self.options.get("block")
            middle = (subject.first_block + subject.model.config.num_hidden_layers) // 2
            self._block = middle if block is None else int(block)  # settings of options are floats
            size = subject.model.config.hidden_size
            self._control = losses.control_vector(
                size, coefficient=self.options.get("coefficient", 20.0), seed=seed, device=subject.device
            )
        if self.retain_loss == "activation":
            self._acts["retain"] = self._activations("retain")

    def _check_topk(self, k: int) -> int:
        if not isinstance(k, int) or isinstance(k, bool) or k < 0:
            raise ValueError(f"topk: expected a whole number >= 0, got {k!r}")
        if k and (
            self.retain_loss == "soul_kl" or not methods.reads_distribution(self.method, self.retain_loss)
        ):
            raise ValueError(
                f"topk: expected 0 for {self.method} with retain_loss={self.retain_loss!r}, which has no use "
                f"for it, got {k}"
            )
        return k

    def _states(self, name: str, everywhere: bool) -> list[Tensor]:
        """Hidden states of each row at its labelled (or all real) positions."""
        found: list[Tensor] = [torch.empty(0)] * self.subject.count(name)
        for chosen in self.subject.by_length(name, 32):
            batch = self.subject.batch(name, chosen)
            hidden = self.subject.hidden(batch)
            for place, i in enumerate(chosen):
                at = batch.mask[place] > 0
                if not everywhere:
                    at = torch.cat((batch.labels[place, 1:] != losses.IGNORE, at.new_zeros(1)))
                found[i] = hidden[place][at].clone()
        return found

    def _activations(self, name: str) -> list[Tensor]:
        found: list[Tensor] = [torch.empty(0)] * self.subject.count(name)
        for chosen in self.subject.by_length(name, 32):
            batch = self.subject.batch(name, chosen)
            acts = self.subject.activations(batch, self._block)
            for place, i in enumerate(chosen):
                found[i] = acts[place][batch.labels[place] != losses.IGNORE].clone()
        return found

    def _ref(self, name: str, chosen: Sequence[int]) -> Tensor:
        return self._nll[name][0][torch.as_tensor(chosen)].to(self.subject.device)

    # -- terms -----------------------------------------------------------------------------------------------

    def _retain(self, chosen: Sequence[int]) -> Tensor:
        batch = self.subject.batch("retain", chosen)
        if self.retain_loss == "nll":
            return losses.nll(self.subject.tokens(batch))
        if self.retain_loss == "activation":
            acts = self.subject.activations(batch, self._block)
            before = acts.detach().clone()
            before[batch.labels != losses.IGNORE] = torch.cat([self._acts["retain"][i] for i in chosen])
            return losses.activation(acts, before, batch.labels)
        return self._divergence("retain", batch, chosen)

    def _divergence(self, name: str, batch: Batch, chosen: Sequence[int]) -> Tensor:
        if self.topk:
            kept = topk_module.take(self._topk[name], chosen, self.subject.device)
            return losses.topk_kl(self.subject.labelled(batch), self.subject.head, kept)
        before = torch.cat([self._hidden[name][i] for i in chosen])
        if self.retain_loss != "soul_kl":
            return losses.kl(self.subject.labelled(batch), self.subject.head, before, self._head)
        hidden = self.subject.hidden(batch)[batch.mask > 0]
        return logit_losses.soul_kl(
            losses.logits(hidden, self.subject.head), losses.logits(before, self._head)
        )

    def _tokens(self, name: str, chosen: Sequence[int]) -> losses.Tokens:
        return self.subject.tokens(self.subject.batch(name, chosen))

    def _teach(self, chosen: Sequence[int]) -> Tensor:
        return losses.nll(self._tokens("forget", chosen))

    def _ga(self, chosen: Sequence[int]) -> Tensor:
        return losses.ga(self._tokens("forget", chosen))

    def _po(self, chosen: Sequence[int]) -> Tensor:
        return losses.nll(self._tokens("refusal", chosen))

    def _rl(self, chosen: Sequence[int]) -> Tensor:
        return losses.nll(self._tokens("random", chosen))

    def _npo(self, chosen: Sequence[int]) -> Tensor:
        ref = self._ref("forget", chosen)
        if self.options["per"] == "batch":
            counts = self._nll["forget"][1][torch.as_tensor(chosen)]
            ref = ref.sum() / max(1, int(counts.sum()))
        return losses.npo(
            self._tokens("forget", chosen), ref, beta=self.options["beta"], per=self.options["per"]
        )

    def _dpo(self, chosen: Sequence[int]) -> Tensor:
        return losses.dpo(
            self._tokens("forget", chosen), self._tokens("refusal", chosen), self._ref("forget", chosen),
            self._ref("refusal", chosen), beta=self.options["beta"],
        )  # fmt: skip

    def _simnpo(self, chosen: Sequence[int]) -> Tensor:
        return losses.simnpo(self._tokens("forget", chosen), **self.options)

    def _wga(self, chosen: Sequence[int]) -> Tensor:
        return losses.wga(self._tokens("forget", chosen), **self.options)

    def _satimp(self, chosen: Sequence[int]) -> Tensor:
        return losses.satimp(self._tokens("forget", chosen), **self.options)

    def _kl(self, chosen: Sequence[int]) -> Tensor:
        return -self._divergence("forget", self.subject.batch("forget", chosen), chosen)

    def _undial(self, chosen: Sequence[int]) -> Tensor:
        rows = self.subject.labelled(self.subject.batch("forget", chosen))
        if self.topk:
            kept = topk_module.take(self._topk["forget"], chosen, self.subject.device)
            return losses.topk_undial(rows, self.subject.head, kept, **self.options)
        before = torch.cat([self._hidden["forget"][i] for i in chosen])
        return losses.undial(rows, self.subject.head, before, self._head, **self.options)

    def _ceu(self, chosen: Sequence[int]) -> Tensor:
        batch = self.subject.batch("forget", chosen)
        labels = losses.skip_first(batch.labels, self.options["skip"])
        return losses.ceu(losses.labelled(self.subject.hidden(batch), labels), self.subject.head)

    def _rmu(self, chosen: Sequence[int]) -> Tensor:
        batch = self.subject.batch("forget", chosen)
        acts = self.subject.activations(batch, self._block)
        return losses.activation(acts, self._control.to(acts), batch.labels)

    def _pdu(self, chosen: Sequence[int]) -> Tensor:
        return losses.margin(self.subject.labelled(self.subject.batch("forget", chosen)), self.subject.head)


_FORGET: dict[str, Callable[[Objective, Sequence[int]], Tensor]] = {
    "teach": Objective._teach, "ga": Objective._ga, "graddiff": Objective._ga, "po": Objective._po, "npo":
    Objective._npo,
    "dpo": Objective._dpo, "simnpo": Objective._simnpo, "kl": Objective._kl, "rl": Objective._rl,
    "wga": Objective._wga, "satimp": Objective._satimp, "undial": Objective._undial, "ceu": Objective._ceu,
    "rmu": Objective._rmu, "pdu": Objective._pdu,
}  # fmt: skip
