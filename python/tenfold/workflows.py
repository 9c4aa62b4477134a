"""The ten workflows: what `tenfold list` shows and what `tenfold run NAME` calls.

Nothing is imported here but the standard library: a workflow's modules load when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["WORKFLOWS", "Workflow"]


@dataclass(frozen=True)
class Workflow:
    """One system.

    `config` and `target` are "module:attribute": a config dataclass and `target(config, folder) -> result`,
    where the target finishes `folder`, a `tenfold.runs.RunFolder`, and `result.metrics` are its numbers. If
    the dataclass has a method `resolved()`, the command calls it before a folder is made: it fills what was
    left open, refuses what is wrong (ValueError or TypeError naming the field), returns the config to run.
    Both are empty as long as `ready` is false. `follower` is `follow(ranks)`, what the other processes do
    under torchrun (`tenfold.runs.ranks`), or empty where a workflow runs in one process.
    """

    name: str
    """What stands after `tenfold run`."""
    paper: str
    """Title of the seed paper, with its arXiv id."""
    families: tuple[str, ...]
    """Kernel families (folders of `tenfold.kernels`) that the system rests on."""
    default: str
    """The embedded default in one line: what runs when no model and no data are named."""
    config: str = ""
    target: str = ""
    ready: bool = False
    follower: str = ""

    def load_config(self) -> Any:
        """The config dataclass (imports the module that holds it)."""
        return _load(self.config)

    def load_target(self) -> Any:
        """The function `target(config, folder)` (imports the workflow)."""
        return _load(self.target)

    def load_follower(self) -> Any:
        """The function `follow(ranks)`."""
        return _load(self.follower)


def _load(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


_ALL = (
    Workflow(
        name="zo",
        paper="Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A Benchmark "
        "(arXiv 2402.11592)",
        families=("zo", "logprob"),
        default="SmolLM2-135M learns review sentiment (Rotten Tomatoes snippets) with forward passes only",
        config="tenfold.llm.zo_config:ZOConfig",
        target="tenfold.llm.zo:run",
        ready=True,
        follower="tenfold.llm.zo_ranks:follow",
    ),
    Workflow(
        name="soul",
        paper="SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning (arXiv 2404.18239)",
        families=("sophia", "logprob"),
        default="SmolLM2-135M forgets two of twelve invented authors, first order against second order",
        config="tenfold.llm.unlearn.soul_config:SoulConfig",
        target="tenfold.llm.unlearn.soul:run",
        ready=True,
        follower="tenfold.llm.unlearn.soul_ranks:follow",
    ),
    Workflow(
        name="advunlearn",
        paper="Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion "
        "Models (arXiv 2405.15234)",
        families=("attack",),
        default="a small text-conditional diffusion model of real digits unlearns one of them, attacked "
        "before and after",
        config="tenfold.diffusion.advunlearn_config:AdvUnlearnConfig",
        target="tenfold.diffusion.advunlearn_run:run",
        ready=True,
    ),
    Workflow(
        name="unlearndiffatk",
        paper="To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate "
        "Unsafe Images ... For Now (arXiv 2310.11868)",
        families=("attack",),
        default="token attack on the unlearned digit model: does the erased digit come back?",
        config="tenfold.diffusion.unlearndiffatk_config:UnlearnDiffAtkConfig",
        target="tenfold.diffusion.unlearndiffatk_run:run",
        ready=True,
    ),
    Workflow(
        name="unlearncanvas",
        paper="UnlearnCanvas: A Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in "
        "Diffusion Models (arXiv 2402.11846)",
        families=("erase", "moments", "attack"),
        default="eight photographs in eight styles: what five unlearning methods take out of a small model, "
        "and what else they break",
        config="tenfold.diffusion.unlearncanvas_config:UnlearnCanvasConfig",
        target="tenfold.diffusion.unlearncanvas_run:run",
        ready=True,
    ),
    Workflow(
        name="dp4tl",
        paper="Selectivity Drives Productivity: Efficient Dataset Pruning for Enhanced Transfer Learning "
        "(arXiv 2310.08782)",
        families=("distance", "scores"),
        default="60 source classes of real digit images pruned for the digits of other writers, accuracy "
        "against the share pruned",
        config="tenfold.selection.transfer.config:DP4TLConfig",
        target="tenfold.selection.transfer.run:run",
        ready=True,
    ),
    Workflow(
        name="cwerm",
        paper="The Power of Few: Accelerating and Enhancing Data Reweighting with Coreset Selection (arXiv "
        "2403.12166)",
        families=("distance", "scores"),
        default="weights learned on a small coreset of real digits with noisy labels, carried to the whole "
        "set",
        config="tenfold.selection.reweight.config:CwermConfig",
        target="tenfold.selection.reweight.run:run",
        ready=True,
    ),
    Workflow(
        name="msdcda",
        paper="Multi-Source EEG Emotion Recognition via Dynamic Contrastive Domain Adaptation (arXiv "
        "2408.10235)",
        families=("mmd",),
        default="MS-DCDA, reconstructed: spoken vowels of 15 real speakers, one held out, the others as "
        "sources",
        config="tenfold.eeg.run_config:MsdcdaConfig",
        target="tenfold.eeg.run:run",
        ready=True,
    ),
    Workflow(
        name="segrap",
        paper="SegRap2023: A Benchmark of Organs-at-Risk and Gross Tumor Volume Segmentation for "
        "Radiotherapy Planning of Nasopharyngeal Carcinoma (arXiv 2312.09576)",
        families=("overlap", "surface", "softdice", "volume"),
        default="82 structures of six real brains, each predicted in eight ways, scored and ranked",
        config="tenfold.segmentation.segrap_config:SegrapConfig",
        target="tenfold.segmentation.segrap:run",
        ready=True,
    ),
    Workflow(
        name="ctsemcom",
        paper="Channel-Transferable Semantic Communications for Multi-User OFDM-NOMA Systems (arXiv "
        "2312.03299)",
        families=("power",),
        default="real photographs sent over Rayleigh fading by two users, with and without SSDT power "
        "allocation",
        config="tenfold.semcom.config:CtsemcomConfig",
        target="tenfold.semcom.run:run",
        ready=True,
    ),
)

WORKFLOWS: dict[str, Workflow] = {workflow.name: workflow for workflow in _ALL}
"""Name -> workflow, in the order of `tenfold list`."""
