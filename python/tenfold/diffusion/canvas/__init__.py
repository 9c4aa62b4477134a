"""UnlearnCanvas: an edited model draws every style with every object, two judges say what it drew.

    canvas = UNLEARNCANVAS                                     50 styles and photographs x 20 objects
    answers = answer_set(edit.apply(bundle), canvas, out="answers/esd/style50/Van_Gogh")
    found = judge_answers(answers, style_judge, object_judge)
    score(found, "Van Gogh")                                   UA, IRA, CRA with intervals

The benchmark of Zhang et al., arXiv 2402.11846. Submodules load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "LANES": "answers", "REFERENCE_SAMPLING": "answers", "AnswerSet": "answers", "answer_set": "answers",
    "merge_answers": "answers", "read_answers": "answers",
    "Key": "keys", "answer_keys": "keys", "budget_keys": "keys", "cell_noise": "keys", "target_keys": "keys",
    "ConceptJudge": "judging", "FunctionJudge": "judging", "JudgeCard": "judging", "JudgeWarning": "judging",
    "Predictions": "judging", "ViTJudge": "judging", "judge_answers": "judging",
    "ConceptTable": "scores", "Costs": "scores", "Score": "scores", "Summary": "scores",
    "concept_table": "scores", "score": "scores", "score_matrix": "scores", "score_tables": "scores",
    "summarise": "scores",
    "FINER_FORMULA": "tasks", "FinerScore": "tasks", "RobustScore": "tasks", "SequentialScore": "tasks",
    "finer_scores": "tasks", "robust_scores": "tasks", "sequential_scores": "tasks",
    "OBJECTS": "vocabulary", "STYLES60": "vocabulary", "UNLEARNCANVAS": "vocabulary", "Canvas": "vocabulary",
}  # fmt: skip

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tenfold.diffusion.canvas.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
