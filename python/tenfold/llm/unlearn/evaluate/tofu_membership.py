"""The membership attacks on a model, with TOFU's sets."""

from __future__ import annotations

from typing import Any

from tenfold.llm.unlearn.evaluate import mia
from tenfold.llm.unlearn.evaluate.queries import Stage, counted, encoded_answers
from tenfold.llm.unlearn.evaluate.scores import token_scores
from tenfold.llm.unlearn.tofu import TofuData

__all__ = ["attack_tofu"]


def attack_tofu(
    model: Any,
    tokenizer: Any,
    data: TofuData,
    template: str,
    *,
    max_length: int = 512,
    tokens: int = 4096,
    k: float = 0.4,
    grad_norm: bool = False,
    score: Any = token_scores,
    progress: Stage = None,
) -> dict[str, float]:
    """AUC of each attack: ``mia_*`` of forget set against holdout, ``soul_mia_*`` as SOUL's code has it.

    Sets that the data lacks leave their figures out. Arguments as in
    :func:`tenfold.llm.unlearn.evaluate.evaluate_tofu`.
    """
    sets = {"forget": data.forget, "holdout": data.holdout, "others": data.real_authors + data.world_facts}
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    encoded = {n: encoded_answers(tokenizer, rows, template, max_length) for n, rows in sets.items() if rows}
    scores = {
        name: score(
            model, rows, pad_id=pad, eos_id=eos, moments=name != "others", tokens=tokens,
            progress=counted(progress, f"membership, {name}", len(rows)),
        )
        for name, rows in encoded.items()
    }  # fmt: skip
    found: dict[str, float] = {}
    if "others" in scores:
        theirs = mia.soul_membership(scores["forget"], scores["others"], shares=mia.SOUL_SHARES)
        found |= {f"soul_mia_{name}": value for name, value in theirs.items()}
    if "holdout" not in scores:
        return found
    norms = None
    if grad_norm:
        norms = (
            mia.grad_norms(model, encoded["forget"], pad_id=pad),
            mia.grad_norms(model, encoded["holdout"], pad_id=pad),
        )
    said = {name: [sets[name][row.index].answer for row in encoded[name]] for name in ("forget", "holdout")}
    attacks = mia.membership(
        scores["forget"], scores["holdout"], texts=(said["forget"], said["holdout"]), norms=norms, k=k
    )
    return found | {f"mia_{name}": value for name, value in attacks.items()}
