"""The kernel for short documents against its twin, in Triton's interpreter on a CPU; skipped where Triton is not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tsugiki.model.short_attention import LONGEST, serves

CODE = """
import torch
from tsugiki.model.attention import by_document
from tsugiki.model.short_attention import short_attention
torch.manual_seed(0)
for heads, group, width, edges in ((4, 1, 32, [0, 5, 5, 70, 198, 200]), (4, 2, 64, [0, 64, 65, 193, 193]), (2, 2, 128, [0, 1, 40])):
    n, dtype = edges[-1], torch.float16
    q = torch.randn(heads, n, width, dtype=dtype).transpose(0, 1).requires_grad_()  # strides as the models give them
    k, v = (torch.randn(n, heads // group, width, dtype=dtype).requires_grad_() for _ in range(2))
    out, _ = short_attention(q, k, v, torch.tensor(edges, dtype=torch.int32), width**-0.5)
    slopes = torch.randn_like(out)
    found = (out, *torch.autograd.grad(out, (q, k, v), slopes))
    plain = [one.detach().float().requires_grad_() for one in (q, k, v)]
    expected = by_document(*plain, edges, width**-0.5)
    expected = (expected, *torch.autograd.grad(expected, plain, slopes.float()))
    for one, other in zip(found, expected, strict=True):
        assert ((one.float() - other).norm() / other.norm()).item() < 1e-3
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it comes with PyTorch's CUDA builds")
def test_the_kernel_equals_its_twin() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], env={"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_kernel_takes() -> None:
    q = torch.zeros(3, 2, 64, dtype=torch.bfloat16)
    assert serves(q, LONGEST)
    assert not serves(q, LONGEST + 1)
    assert not serves(q.float(), 10)
    assert not serves(torch.zeros(3, 2, 80, dtype=torch.bfloat16), 10)
