"""A base in 4 bits on a CUDA device: the captured step over codes against the one over the dense
values, for one lane and for several; codes are those of a CPU."""

from __future__ import annotations

import pytest
import torch

from tests import build
from tests.gpu.test_lanes import FUSED, SLOW
from tests.parity.test_training import rows
from tests.train.test_lanes import Asked, lanes_of
from tsugiki.model.loading import no_dropout
from tsugiki.model.nf4 import Nf4Linear
from tsugiki.model.numerics import pick_numerics
from tsugiki.model.quantise import dense_layers, quantise_layers
from tsugiki.score.decode import generate_lanes
from tsugiki.train.engine import fit
from tsugiki.train.open_step import open_step

pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
CUDA = torch.device("cuda")


def trained(
    kind: str, asked: list[Asked], *, dense: bool, step: str
) -> tuple[list[list[float]], list[list[list[int]]]]:
    """Losses and answers of every lane."""
    numerics = pick_numerics("lora", "auto", CUDA, "nf4")
    model = build.MODELS[kind]().to(torch.bfloat16)
    no_dropout(model)
    quantise_layers(model, CUDA, torch.bfloat16)
    model.to(CUDA)
    if dense:
        dense_layers(model, torch.bfloat16)
    lanes = lanes_of(
        model, [(lora, train.model_copy(update={"step": step})) for lora, train in asked]
    )
    with open_step(model, lanes, rows(), pad_id=3, device=CUDA, numerics=numerics) as opened:
        results = fit(opened, lanes, CUDA, folders=[None] * len(lanes))
        assert opened.kind.startswith(step)
    prompts = [tuple(5 + (7 * n + 3 * at) % 300 for at in range(1 + n % 9)) for n in range(40)]
    answers = generate_lanes(
        model, prompts, lanes=len(lanes), max_new_tokens=8, batch=16, stops=(), numerics=numerics
    )
    return [result.history.loss for result in results], answers


@pytest.mark.parametrize("kind", ["llama", "gpt2", "broad llama", "broad gpt2"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_captured_step_over_codes_is_the_one_over_the_dense_values(kind: str, count: int) -> None:
    asked = FUSED[:count]
    coded, answers = trained(kind, asked, dense=False, step="cuda_graph")
    wanted, wanted_answers = trained(kind, asked, dense=True, step="cuda_graph")
    for number in range(count):
        assert coded[number] == pytest.approx(wanted[number], rel=5e-3)
        assert coded[number][-1] < coded[number][0]
        pairs = zip(answers[number], wanted_answers[number], strict=True)
        assert sum(one == other for one, other in pairs) >= 32


def test_the_plain_step_trains_as_the_captured_one() -> None:
    plain, _ = trained("broad llama", SLOW[:1], dense=False, step="eager")
    captured, _ = trained("broad llama", FUSED[:1], dense=False, step="cuda_graph")
    assert captured[0] == pytest.approx(plain[0], rel=2e-2)


def test_codes_are_those_of_a_cpu() -> None:
    """So that a run over 4 bits means the same wherever its base was rounded."""
    for dtype in (torch.float32, torch.bfloat16):
        models = [build.MODELS["broad gpt2"]().to(dtype) for _ in range(2)]
        for model, device in zip(models, (torch.device("cpu"), CUDA), strict=True):
            quantise_layers(model, device, dtype)
        for one, other in zip(models[0].modules(), models[1].modules(), strict=True):
            if isinstance(one, Nf4Linear):
                assert torch.equal(one.codes, other.codes.cpu())
                assert torch.equal(one.absmax, other.absmax.cpu())
                assert torch.equal(one.dense(), other.dense().cpu())
