"""Tables and the page of a ``zo`` run."""

from __future__ import annotations

from typing import Any

from tenfold.llm import memory, zo_figures
from tenfold.llm.zo import MEMORY_BATCH, Outcome
from tenfold.llm.zo_numbers import (
    Score,
    collect,
    examples,
    milliseconds,
    part_name,
    score,
    time_rows,
    usual_share,
)
from tenfold.runs import Claim, Headline, Report, RunFolder, Section

OPTIMIZER_NAMES = {"fzoo": "FZOO", "zo-sgd": "ZO-SGD (MeZO)", "zo-adam": "ZO-Adam"}
MODEL_NAMES = {"smollm2": "SmolLM2-135M-Instruct"}


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Tables, pictures, numbers and page; returns the numbers."""
    scores = score(outcome)
    numbers = collect(outcome, scores)
    _write_tables(outcome, scores, folder)
    zo_figures.draw(outcome, scores, folder)
    folder.finish(numbers, _report(outcome, scores, numbers))
    return numbers


def _write_tables(outcome: Outcome, scores: dict[str, Score], folder: RunFolder) -> None:
    folder.write_table("accuracy", [_score_row(outcome, name, score) for name, score in scores.items()])
    folder.write_table("time", [_time_row(row) for row in time_rows(outcome)])
    folder.write_table("examples", examples(outcome))
    steps = [{"phase": f"seed{seed}", **row} for seed, t in outcome.seeds.items() for row in t.history.steps]
    if outcome.full is not None:
        steps += [{"phase": "full", **row} for row in outcome.full.history.steps]
    folder.write_table("steps", steps)
    folder.write_table("dev", [{"seed": s, **row} for s, t in outcome.seeds.items() for row in t.history.dev])
    if outcome.memory:
        folder.write_table("memory", [_memory_row(row) for row in outcome.memory])


def _score_row(outcome: Outcome, name: str, score: Score) -> dict[str, Any]:
    part = part_name(outcome)
    what = {"before": "untrained", "after": f"{part}, mean of seeds", "full": "every parameter, second phase"}
    return {
        "what": what.get(name, f"{part}, {name.replace('seed', 'seed ')}"),
        "accuracy": score.accuracy,
        "from": score.low,
        "to": score.high,
        "cross-entropy": score.loss,
    }


def _time_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": row["what"],
        "ms a step": round(row["ms_per_step"], 1),
        "forward %": round(100 * row["forward_share"], 1),
        "passes %": round(100 * row["pass_share"], 1),
        "rest %": round(100 * row["rest_share"], 1),
        "passes a step": round(row["passes_per_step"], 2),
        "ms a pass": round(row["pass_ms"], 2),
    }


def _memory_row(row: memory.Measured) -> dict[str, Any]:
    return {
        "what": memory.LABELS[row.mode].replace("\n", " "),
        "above the model, MiB": round(row.above_model, 1),
        "above the empty process, MiB": round(row.above_start, 1),
        "seconds": round(row.seconds, 2),
    }


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _report(outcome: Outcome, scores: dict[str, Score], numbers: dict[str, float | int]) -> Report:
    config = outcome.config
    model = MODEL_NAMES.get(config.model, config.model)
    optimizer = OPTIMIZER_NAMES[config.optimizer]
    before, after = scores["before"], scores["after"]
    part = part_name(outcome)
    several = len(outcome.seeds) > 1
    did = "learned" if numbers["accuracy_gain_low"] > 0 else "was trained"
    lead = (
        f"{model} ({outcome.parameters:,} parameters) {did} to tell apart {_task(outcome)} without "
        f"back-propagation: {optimizer} perturbs the weights, reads the loss, and steps along the "
        f"perturbation. Training {part} ({outcome.trained_parameters:,} parameters) for "
        f"{_several(numbers['steps'], 'step')}, {numbers['forwards_per_seed']:,} forward passes in all, took "
        "accuracy on "
        f"{len(outcome.labels)} held-out examples from {_percent(before.accuracy)} to "
        f"{_percent(after.accuracy)}{f' (mean of {len(outcome.seeds)} seeds)' if several else ''}."
    )
    sections = [_accuracy_section(outcome, scores, numbers), _loss_section(outcome)]
    if outcome.memory:
        sections.append(_memory_section(outcome))
    sections += [_time_section(outcome), _examples_section()]
    return Report(
        title=f"Fine-tuning {model} with forward passes only",
        lead=lead,
        headlines=_headlines(outcome, scores, numbers),
        sections=sections,
        claims=_claims(outcome, scores, numbers),
        measured=_measured(outcome),
    )


def _task(outcome: Outcome) -> str:
    if outcome.config.data == "reviews":
        return "good and bad film reviews"
    return f"the {len(outcome.config.verbalizers)} classes of {outcome.source}"


def _headlines(outcome: Outcome, scores: dict[str, Score], numbers: dict[str, float | int]) -> list[Headline]:
    before, after = scores["before"], scores["after"]
    spread = (
        f", seeds' sd {100 * numbers['accuracy_after_seed_sd']:.1f} points" if len(outcome.seeds) > 1 else ""
    )
    tiles = [
        Headline(
            "Accuracy, before to after",
            f"{_percent(before.accuracy)} → {_percent(after.accuracy)}",
            f"95 % interval after: {_percent(after.low)} to {_percent(after.high)}{spread}",
        )
    ]
    if outcome.full is not None:
        tiles.append(
            Headline(
                "Training every parameter",
                f"{_percent(before.accuracy)} → {_percent(scores['full'].accuracy)}",
                f"{_several(numbers['full_steps'], 'step')}, {numbers['full_forwards']} forward "
                "passes, one seed",
            )
        )
    by_mode = {row.mode: row for row in outcome.memory}
    if "zo" in by_mode and "adam" in by_mode:
        tiles.append(
            Headline(
                "Memory on top of the model",
                f"{by_mode['zo'].above_model:.0f} MiB",
                "a ZO step on every parameter; back-propagation with Adam: "
                f"{by_mode['adam'].above_model:,.0f} MiB",
            )
        )
    row = time_rows(outcome)[-1]
    tiles.append(
        Headline(
            "Time in weight passes",
            f"{100 * row['pass_share']:.0f} %",
            f"of a step on {row['what']} ({milliseconds(row['pass_ms'])} a pass)",
        )
    )
    return tiles


def _accuracy_section(outcome: Outcome, scores: dict[str, Score], numbers: dict[str, float | int]) -> Section:
    config = outcome.config
    words = " or ".join(f"`{word.strip()}`" for word in config.verbalizers)
    text = (
        f"Each example is put into the prompt `{config.template}` and the model answers {words}, whichever "
        f"it finds more likely as the next word. Chance is {100 / len(config.verbalizers):.0f} "
        f"%.\n\nAccuracy {_change(100 * numbers['accuracy_gain'], 1, ' points')} (95 % interval of the "
        "change "
        f"{100 * numbers['accuracy_gain_low']:.1f} to {100 * numbers['accuracy_gain_high']:.1f}, paired "
        "over the examples); the cross-entropy "
        f"{_from_to(scores['before'].loss, scores['after'].loss)}. For each seed the step with the "
        "lowest loss on "
        f"{len(outcome.dev_labels)} other examples was kept, and the held-out examples were used once."
    )
    if outcome.full is not None:
        text += (
            "\n\nThe second phase starts again from the untrained model and moves all "
            f"{outcome.parameters:,} parameters for {_several(numbers['full_steps'], 'step')}, with no "
            "choice of step. "
            "With `--trainable full` every parameter is trained from the start, as the seeds are here."
        )
    if any(trained.history.stopped_early for trained in outcome.seeds.values()):
        text += "\n\n**Training was stopped early by `max_minutes`.**"
    return Section("Accuracy on held-out examples", text, [zo_figures.ACCURACY], ["accuracy"])


def _loss_section(outcome: Outcome) -> Section:
    config = outcome.config
    probes = int(config.num_queries or 1)
    forwards = (
        f"{probes + 1} forward passes: one at the weights as they are and one at each of {probes} random "
        "neighbours"
        if config.optimizer == "fzoo"
        else f"{2 * probes} forward passes, two at opposite neighbours for each of {probes} random directions"
        if probes > 1
        else "2 forward passes, at two opposite neighbours along one random direction"
    )
    text = (
        f"A step costs {forwards}. The directions are never stored: a counter-based generator makes each "
        "again from its seed whenever a pass over the weights needs it."
    )
    return Section("The loss", text, [zo_figures.LOSS])


def _memory_section(outcome: Outcome) -> Section:
    text = (
        "Each bar is a process of its own that loads the model and works on the same batch: the "
        f"{MEMORY_BATCH} longest training prompts. The zero point of the coloured part is the memory after "
        "loading; the table also gives the peak above the process before loading. "
        f"Measured as {outcome.memory[0].method}, the larger of two steps.\n\n"
        f"{_memory_words(outcome)}"
    )
    return Section("Memory", text, [zo_figures.MEMORY], ["memory"])


def _memory_words(outcome: Outcome) -> str:
    """What the modes took on top of the model, and what each of them keeps."""
    config = outcome.config
    above = {row.mode: row.above_model for row in outcome.memory}
    keeps = ["nothing but the weights and what the forward pass needs"]
    if config.optimizer == "zo-adam":
        keeps = ["two moments in float32 for every parameter"]
    if config.restore == "exact":
        keeps = [*(keeps if config.optimizer == "zo-adam" else []), "a clean copy of every weight"]
    saved = 100 * (1 - above["adam-ckpt"] / above["adam"])
    return (
        f"On top of the model one forward pass took {above['forward']:,.0f} MiB and a zeroth-order step "
        f"{above['zo']:,.0f} MiB; it keeps {' and '.join(keeps)}. Back-propagation with Adam took "
        f"{above['adam']:,.0f} MiB: it keeps a gradient and two moments for every parameter, three times the "
        f"weights, and the activations besides. Checkpointing saves activations only; with it the peak was "
        f"{above['adam-ckpt']:,.0f} MiB, {abs(saved):.0f} % {'less' if saved >= 0 else 'more'}."
    )


def _several(count: float, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _change(by: float, digits: int, unit: str) -> str:
    shown = f"{abs(by):.{digits}f}"
    if float(shown) == 0:
        return "did not change"
    return f"{'rose' if by > 0 else 'fell'} by {shown}{unit}"


def _from_to(before: float, after: float) -> str:
    first, last = f"{before:.3f}", f"{after:.3f}"
    if first == last:
        return f"stayed at {first}"
    return f"{'rose' if after > before else 'fell'} from {first} to {last}"


def _time_section(outcome: Outcome) -> Section:
    row = time_rows(outcome)[-1]
    count = outcome.parameters if row["what"] == "every parameter" else outcome.trained_parameters
    config = outcome.config
    plain = config.dtype == "float32" and config.optimizer != "zo-adam" and config.restore == "arithmetic"
    rate = 8e-6 * count / row["pass_ms"] if plain else 0.0
    speed = f", which is {rate:.1f} GB/s of weights read and written" if rate else ""
    moments = " Adam's passes also read and write its moments." if config.optimizer == "zo-adam" else ""
    text = (
        "A weight pass reads and writes every trained weight once to perturb it, or to restore and update "
        f"it; restoring from one direction and perturbing along the next is a single pass. On {row['what']} "
        f"a pass took {milliseconds(row['pass_ms'])}{speed}, {row['passes_per_step']:.3g} passes a "
        f"step.{moments} As the "
        "papers' code writes it, random numbers drawn and added tensor by tensor in PyTorch, one pass took "
        f"{milliseconds(outcome.usual_pass_ms)}: as many passes would be {100 * usual_share(outcome):.0f} % "
        "of the step."
    )
    if config.trainable != "full":
        text += (
            f"\n\nThe blocks in front of {part_name(outcome)} do not change, so the hidden states that "
            f"leave them are computed once per example ({outcome.kept_seconds:.1f} s for all of them). "
            "This short path was compared with the plain forward of the whole model before training: the "
            f"answer logits differ by {outcome.check:.1e} at most."
        )
    return Section("Where the time goes", text, [zo_figures.TIME], ["time"])


def _examples_section() -> Section:
    text = (
        "Held-out examples whose answer changed, or stayed wrong, with the first seed: the answer and how "
        "likely the model found it against the other answer words."
    )
    return Section("Some answers, before and after", text, [], ["examples"])


def _claims(outcome: Outcome, scores: dict[str, Score], numbers: dict[str, float | int]) -> list[Claim]:
    after = scores["after"].accuracy
    claims = [
        Claim(
            "Zeroth-order fine-tuning comes close to first-order: OPT-1.3B on SST2, full fine-tuning, 90.8 "
            "% with ZO-SGD against 91.1 % with SGD.",
            f"{_percent(after)} from {_percent(scores['before'].accuracy)}, in "
            f"{numbers['forwards_per_seed']:,} forward passes, with a model of {outcome.parameters:,} "
            "parameters. First-order "
            "training is not part of this run.",
            "ZO-LLM (arXiv 2402.11592), repeated in the table of ReLIZO",
        )
    ]
    by_mode = {row.mode: row for row in outcome.memory}
    if "zo" in by_mode and "adam" in by_mode:
        claims.append(
            Claim(
                "Memory near inference: OPT-1.3B on SST2, full fine-tuning, batch 128: 28.7 GB with ZO-SGD "
                "against 44.1 GB with SGD.",
                f"{by_mode['zo'].above_start:,.0f} MiB against {by_mode['adam'].above_start:,.0f} MiB with "
                f"Adam ({by_mode['adam'].above_start / by_mode['zo'].above_start:.1f} times), the model "
                "itself included.",
                "ReLIZO's rerun of the ZO-LLM table",
            )
        )
    if "adam-ckpt" in by_mode:
        claims.append(
            Claim(
                "The honest baseline for memory is back-propagation with activation checkpointing.",
                f"{by_mode['adam-ckpt'].above_start:,.0f} MiB with Adam and checkpointing on this batch.",
                "arXiv 2506.21833",
            )
        )
    row = time_rows(outcome)[-1]
    claims.append(
        Claim(
            "On GPUs more than half of MeZO's time is spent perturbing and updating weights.",
            f"{100 * row['pass_share']:.0f} % of a step on {row['what']}, on this machine's "
            f"{'GPU' if outcome.config.device == 'cuda' else 'CPU'}; with the "
            f"passes written as in the papers' code {100 * usual_share(outcome):.0f} %.",
            "LeZO (arXiv 2410.09823), abstract",
        )
    )
    return claims


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    return (
        f"Data: {outcome.source}; {config.train_size} training, {config.dev_size} dev and "
        f"{config.test_size} test examples, classes balanced, no text in two splits. Intervals: Wilson for "
        "one model, bootstrap over the test examples for the mean of seeds. Training: "
        f"{OPTIMIZER_NAMES[config.optimizer]}, learning rate {config.lr:g}, eps {config.eps:g}, batch "
        f"{config.batch_size}, {_several(config.num_queries or 1, 'direction')} a step, "
        f"{'seeds' if len(outcome.seeds) > 1 else 'seed'} "
        f"{', '.join(map(str, outcome.seeds))}; weights in {config.dtype}, loss in float32. Times are wall "
        "times of this machine, whatever else it was doing."
    )
