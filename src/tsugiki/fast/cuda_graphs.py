"""CUDA graphs that share one memory pool: capture once, replay without Python or launches in
between."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsugiki.config.run import StepKind
from tsugiki.errors import RunError
from tsugiki.fast.attention import packed_states
from tsugiki.model.look import rows_stay_apart
from tsugiki.model.lora import switched_off
from tsugiki.model.numerics import Numerics
from tsugiki.words import Message


def why_no_cuda_graphs(model: Any, device: torch.device, numerics: Numerics) -> str | None:
    """Why the fast paths do not exist here, or None: they need CUDA, 16-bit matmuls and attention
    that can be exchanged."""
    if device.type != "cuda":
        return Message("fast.needs_cuda", device=device.type)
    if numerics.compute != "bf16":
        return Message("fast.needs_bf16", compute=numerics.compute)
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False) or not repeated_layers(model):
        return Message("fast.attention", model=name)
    if getattr(model.config, "attn_logit_softcapping", None):
        return Message("fast.capped", model=name)
    if _rope_kinds(model.config) & {"dynamic", "longrope"}:
        return Message("fast.rope", model=name)
    if (missing := missing_tools()) is not None:
        return Message("fast.tools", missing=missing)
    with switched_off(model):  # adapters split a batch by lanes, which is not the question
        apart = rows_stay_apart(
            model, partial(packed_states, model, numerics.autocast(next(model.parameters()).device))
        )
    return None if apart else Message("fast.rows_mix", model=name)


def why_eager(model: Any, device: torch.device, numerics: Numerics, kind: StepKind) -> str | None:
    """What to tell the user of a card that could use CUDA graphs, when `auto` takes the eager step
    for this model; None where there is nothing to say."""
    if kind != "auto" or device.type != "cuda" or numerics.compute != "bf16":
        return None
    missing = why_no_cuda_graphs(model, device, numerics)
    return Message("note.eager", why=missing) if missing else None


def missing_tools() -> str | None:
    """What Triton would not find when it compiles a kernel, or None."""
    if find_spec("triton") is None:
        return Message("fast.no_triton")
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang", "cl")):
        return Message("fast.no_compiler")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return Message("fast.no_headers")
    return None


def use_cuda_graphs(
    kind: StepKind, setting: str, model: Any, device: torch.device, numerics: Numerics
) -> bool:
    """Whether `setting = kind` means the fast path here: `auto` means CUDA graphs wherever they
    exist.

    Raises:
        RunError: `cuda_graph` was asked for and does not exist here.
    """
    missing = why_no_cuda_graphs(model, device, numerics)
    if kind == "cuda_graph" and missing:
        raise RunError(f'{setting} = "cuda_graph": {missing}. Use "auto" or "eager"')
    return kind != "eager" and not missing


def _rope_kinds(config: Any) -> set[str]:
    """The kinds of rotary embedding that a configuration names (one, or one for each kind of
    layer)."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    records = [given, *(kind for kind in given.values() if isinstance(kind, dict))]
    return {str(record.get("rope_type") or record.get("type")) for record in records}


def repeated_layers(model: Any) -> list[nn.Module]:
    """The transformer layers, by the class names that transformers keeps for splitting a model
    over devices."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.base_model.modules() if type(module).__name__ in names]


@contextmanager
def layer_calls(model: Any, changed: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Within it each layer is called through `changed(layer, its compiled call or None)`; None
    calls it as written."""
    layers = repeated_layers(model)
    before = [layer._compiled_call_impl for layer in layers]
    try:
        for layer, compiled in zip(layers, before, strict=True):
            layer._compiled_call_impl = changed(layer, compiled)
        yield
    finally:
        for layer, compiled in zip(layers, before, strict=True):
            layer._compiled_call_impl = compiled


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all that is captured: PyTorch keeps a workspace of matmuls for every stream
    that ever ran one, for good."""
    return torch.cuda.Stream(device)


class GraphCapturer:
    """Captures work on one stream into graphs of one pool. Capture the largest first: later ones
    then reuse its memory.

    The graphs of a pool must not run at the same time, and what one leaves in memory of the pool
    may be overwritten by the next: results that outlive a replay belong into tensors made before.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = _stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Runs `work` once, not captured: compiles, loads kernels, makes workspaces."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Captures `work`, which must read and write fixed tensors and never wait for the
        device."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        return graph
