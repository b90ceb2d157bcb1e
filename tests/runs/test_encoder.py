"""The encoder row: an encoder that chooses its answers, trained by the same engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from tests import build
from tsugiki.config.run import ModelChoice, RunConfig
from tsugiki.data.batch import Order
from tsugiki.data.example import Example
from tsugiki.data.pairs import collate_pairs, encode, options_of
from tsugiki.data.prompts import Options, Pair, Tokens
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError, DataError, ModelError, RunError
from tsugiki.model.encoder import AnswerHead, read_encoder
from tsugiki.model.loading import find_base, load_base, max_positions_of
from tsugiki.runs.methods import ENCODER
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.train.engine import Interrupted, fit

CPU = torch.device("cpu")


def save_pairs(folder: Path) -> Path:
    """The tiny task, its label a matter of the second text alone."""
    path = build.save_task(folder)
    animals, places = ["犬", "猫", "子ども"], ["公園", "庭", "台所"]
    rows = []
    for number in range(27):
        animal, place = animals[number // 3 % 3], places[number // 9]
        said = ["動物が外にいます。", f"{animal}は魚を食べた。", f"{animal}は{place}にいない。"]
        first = f"{animal}が{place}を走っています。"
        row = {"a": first, "b": said[number % 3], "label": "enc"[number % 3], "image": str(number)}
        rows.append(json.dumps(row, ensure_ascii=False))
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return path


TASKS = {"classification": save_pairs, "choice": build.save_choice}
SHAPES = pytest.mark.parametrize("save", TASKS.values(), ids=TASKS)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.save_encoder(tmp_path_factory.mktemp("roberta"))


def config_of(encoder: Path, task: Path, **train: object) -> RunConfig:
    given = {"learning_rate": 3e-3, "epochs": 30, "batch": 8, "precision": "fp32", **train}
    return build.run_config(encoder, task, method="encoder", lora=None, train=given)


def run(config: RunConfig, out: Path) -> RunRecord:
    [record] = run_group([config], Store(out))
    return record


@pytest.mark.precision
@SHAPES
def test_it_learns_a_separable_task(
    encoder: Path, tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    record = run(config_of(encoder, save(tmp_path / "task"), precision="auto"), tmp_path / "out")
    assert record.status == "done"
    assert record.main_score("validation") == 1.0
    scored = record.scored("validation")
    assert scored.failures == {"right": 9}
    assert scored.candidate_rate == 1.0
    assert record.losses[0] > 1.0
    assert record.losses[-1] < 0.05
    assert record.outcome.step == "eager"
    assert record.outcome.target_tokens == 1.0


@SHAPES
def test_a_plain_loop_has_the_same_losses(
    encoder: Path, tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    """AutoModel, PyTorch's AdamW, and each row by itself without padding."""
    path = save(tmp_path / "task")
    config = config_of(encoder, path, epochs=3, micro_batch=4, schedule="linear", warmup=0.2)
    record = run(config, tmp_path / "out")

    task = load_task(config.task)
    base = ENCODER.answering.load(find_base(config.model, "encoder", "fp32"))
    rows = encode(base.tokenizer, task, task.examples["train"], 64)
    model = AutoModel.from_pretrained(encoder, trust_remote_code=False, add_pooling_layer=False)
    outputs = 3 if task.spec.kind == "classification" else 1
    head = AnswerHead(32, outputs, 0.02, config.train.seed)
    parameters = [*model.parameters(), *head.parameters()]
    adamw = torch.optim.AdamW(parameters, lr=1.0, weight_decay=config.train.weight_decay)
    order = Order(num_rows=len(rows), batch=8, seed=config.train.seed)
    [lane] = ENCODER.lanes(base, [config], len(rows))
    losses = []
    for step in range(lane.steps):
        lane.step = step
        adamw.param_groups[0]["lr"] = lane.learning_rate
        own = [rows[number] for number in order.rows_of(step)]
        total = torch.zeros(())
        for row in own:
            states = [
                model(input_ids=torch.tensor([pair.ids])).last_hidden_state[:, 0]
                for pair in options_of(row).pairs
            ]
            logits = torch.cat([head(state) for state in states]).reshape(1, -1)
            right = options_of(row).texts.index(row.example.target)
            total = total + F.cross_entropy(logits, torch.tensor([right]))
        loss = total / len(own)
        losses.append(loss.item())
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.train.clip)
        adamw.step()
    assert record.losses == pytest.approx(losses, rel=2e-4, abs=2e-5)


@pytest.mark.precision
@SHAPES
def test_a_killed_run_goes_on_to_the_same_bits(
    encoder: Path, tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    path = save(tmp_path / "task")
    config = config_of(encoder, path, epochs=4, precision="auto")
    whole = run(config, tmp_path / "whole")
    task = load_task(config.task)

    def lane_and_step() -> tuple:
        source = find_base(config.model, "encoder", "auto")
        base = ENCODER.answering.load(source)
        rows = encode(base.tokenizer, task, task.examples["train"], 64)
        [lane] = ENCODER.lanes(base, [config], len(rows))
        return lane, ENCODER.answering.open_step(base, [lane], rows)

    class Killed(Exception):
        """As a kill: nothing is finished."""

    def kill(paused: list) -> None:
        paused[0].save(tmp_path / "checkpoint")
        raise Killed

    lane, opened = lane_and_step()
    lane.callback_steps = frozenset({5})
    with opened as step, pytest.raises(Killed):
        fit(step, [lane], CPU, folders=[None], callback=kill)
    lane, opened = lane_and_step()
    with torch.no_grad():
        for parameter in lane.parameters.values():
            parameter.zero_()  # all of it comes from the checkpoint
    with opened as step:
        [result] = fit(step, [lane], CPU, folders=[tmp_path / "checkpoint"])
    assert result.resumed_from == 5
    assert result.history.loss == whole.losses


def test_ctrl_c_and_the_same_command_again(encoder: Path, task_file: Path, tmp_path: Path) -> None:
    import os
    import signal

    from tsugiki.runs.events import Events

    config, sent = config_of(encoder, task_file, epochs=8), []

    def interrupt(progress: object) -> None:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    whole = run(config, tmp_path / "whole")
    store = Store(tmp_path / "out")
    with pytest.raises(Interrupted):
        run_group([config], store, Events(on_train=interrupt))
    [record] = run_group([config], store)
    assert record.losses == whole.losses
    assert record.scored("validation").main == whole.scored("validation").main


@pytest.mark.parametrize("kind", build.ENCODERS)
def test_encoders_of_other_kinds(kind: str, tmp_path: Path) -> None:
    """Each learns by its own layout, and is scored from what was kept as it was when trained."""
    from tsugiki.runs.finished import score_run

    folder = build.save_encoder(tmp_path / kind, kind)
    record = run(config_of(folder, save_pairs(tmp_path / "task")), tmp_path / "out")
    assert record.main_score("validation") > 0.6, record.losses
    assert record.losses[-1] < 0.7 * record.losses[0]
    model = read_encoder(folder, torch.float32, only_names=True)
    assert record.outcome.trainable == ENCODER.num_trained(model, record.config)
    assert max_positions_of(model.config) == 64
    [again] = [score_run(record, "test")]
    assert again.main_score("test") > 0.6


def test_batches_of_any_size_answer_alike(encoder: Path, tmp_path: Path) -> None:
    task = load_task(build.run_config(encoder, build.save_choice(tmp_path / "task")).task)
    config = config_of(encoder, tmp_path / "task" / "tiny_choice.toml")
    base = ENCODER.answering.load(find_base(config.model, "encoder", "fp32"))
    ENCODER.lanes(base, [config], 24)
    rows = encode(base.tokenizer, task, task.examples["validation"], 64)
    answers = []
    for batch in (1, 4, 64):
        score = config.score.model_copy(update={"batch": batch})
        [made] = ENCODER.answering.evaluate(base, task.spec, "validation", rows, score)
        answers.append([prediction.answer for prediction in made.predictions])
    assert answers[0] == answers[1] == answers[2]
    # Each is one of its own row's candidates.
    assert all(a in row.example.candidates for a, row in zip(answers[0], rows, strict=True))


def test_the_texts_are_those_of_the_prompt(encoder: Path, tmp_path: Path) -> None:
    tokenizer = build.encoder_tokenizer()
    task = load_task(config_of(encoder, save_pairs(tmp_path / "a")).task)
    [row] = encode(tokenizer, task, task.examples["train"][:1], 64)
    pair, fields = options_of(row).pairs[0], task.examples["train"][0].fields
    assert pair.ids == tuple(tokenizer(fields["a"], fields["b"])["input_ids"])
    assert set(pair.types) == {0, 1}
    assert options_of(row).texts == tuple(sorted(("含意", "中立", "矛盾")))

    task = load_task(config_of(encoder, build.save_choice(tmp_path / "b")).task)
    [row] = encode(tokenizer, task, task.examples["train"][:1], 64)
    example = task.examples["train"][0]
    assert [pair.ids for pair in options_of(row).pairs] == [
        tuple(tokenizer(example.fields["question"], each)["input_ids"])
        for each in example.candidates
    ]


def test_long_rows(encoder: Path, task_file: Path, tmp_path: Path) -> None:
    tokenizer = build.encoder_tokenizer()
    task = load_task(config_of(encoder, task_file).task)
    with pytest.raises(DataError, match="tokens, but the encoder reads 12"):
        encode(tokenizer, task, task.examples["train"], 12)
    left_out: list[str] = []
    kept = encode(tokenizer, task, task.examples["train"], 22, left_out)
    assert kept
    assert left_out
    assert len(kept) + len(left_out) == 24
    text = task_file.read_text(encoding="utf-8")
    text = text.replace('target = "label"', 'target = "label"\ncut = "a"')
    task_file.write_text(text, encoding="utf-8")
    cut = load_task(config_of(encoder, task_file).task)
    rows = encode(tokenizer, cut, cut.examples["train"], 22)
    assert max(len(row) for row in rows) <= 22
    assert sum(row.was_cut for row in rows) == len(left_out)


# ---- what is refused ----------------------------------------------------------------------------


def test_a_causal_model_is_no_encoder(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is no encoder \(llama\); read as such are bert, roberta"
    ):
        run(config_of(model_folder, task_file), tmp_path / "out")


def test_an_encoder_is_no_causal_model(encoder: Path) -> None:
    with pytest.raises(ModelError, match=r'is an encoder \(roberta\).*kind = "encoder"'):
        load_base(find_base(ModelChoice(path=str(encoder)), "lora", "fp32"))


def test_a_tensor_that_is_missing_is_named(encoder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(encoder, tmp_path / "damaged"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["roberta.encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing \(encoder\.layer\.1\.output"):
        read_encoder(folder, torch.float32)


def test_a_tokenizer_without_marks(tmp_path: Path, task_file: Path) -> None:
    folder = build.save_encoder(tmp_path / "bare")
    build.tokenizer().save_pretrained(folder)
    with pytest.raises(ModelError, match="puts no mark"):
        run(config_of(folder, task_file), tmp_path / "out")


def test_free_text_is_not_chosen(encoder: Path, task_file: Path) -> None:
    text = task_file.read_text(encoding="utf-8")
    start, end = text.index("[labels]"), text.index("[formats]")
    text = text[:start] + text[end:]
    text = text.replace("classification", "generation").replace('"accuracy"', '"rouge"')
    task_file.write_text(text, encoding="utf-8")
    task = load_task(config_of(encoder, task_file).task)
    with pytest.raises(DataError, match=r"its answers are free text.*tasks = \["):
        encode(build.encoder_tokenizer(), task, task.examples["train"], 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {**build.TRAIN, "step": "cuda_graph"}}, "has the eager step alone"),
        ({"train": {**build.TRAIN, "moments": "8bit"}}, "only full fine-tuning reads it"),
        ({"lora": {"rank": 2}}, 'method = "encoder" would ignore it'),
        ({"model": {"path": "m", "base": "nf4"}}, 'cannot be tuned by method = "encoder"'),
        ({"shots": 2}, 'only method = "base"'),
    ],
)
def test_what_it_does_not_read_is_refused(changes: dict, message: str, task_file: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build.run_config(Path("m"), task_file, **{"method": "encoder", "lora": None, **changes})


def test_nothing_is_asked_of_it_but_its_task(
    encoder: Path, task_file: Path, tmp_path: Path
) -> None:
    from tsugiki.runs.answer_modes import answer_modes
    from tsugiki.runs.new_rows import label_file
    from tsugiki.runs.use import answer_texts, export_merged, export_run

    record = run(config_of(encoder, task_file, epochs=1), tmp_path / "out")
    to = tmp_path / "to"
    asked: list[Callable[[], object]] = [
        lambda: answer_texts(record, ["犬"], 4),
        lambda: answer_modes(record, "validation"),
        lambda: label_file(record, task_file.parent / "test.jsonl", tmp_path / "new.jsonl"),
        lambda: export_run(record, to),
        lambda: export_merged(record, to, "bf16"),
    ]
    for ask in asked:
        with pytest.raises(RunError, match="is an encoder's run: it chooses among the answers"):
            ask()
    assert not to.exists()


def test_rows_with_fewer_answers_than_others() -> None:
    """Their logits are their own; there is nothing where they have none."""
    rows = []
    for number, texts in enumerate((("甲", "乙"), ("丙", "丁", "戊"), ("己",))):
        pairs = tuple(Pair(ids=(1, 7 + number, 2), types=(0, 0, 0)) for _ in texts)
        example = Example(id=str(number), fields={}, target=texts[-1], candidates=texts)
        options = Options(texts=texts, pairs=pairs)
        rows.append(Tokens(example=example, prompt_ids=(), target_ids=(), options=options))
    batch = collate_pairs(rows, [4, 5, 6], 3)
    assert batch.index.tolist() == [[0, 1, 6], [2, 3, 4], [5, 6, 6]]
    assert batch.right.tolist() == [1, 2, 0]
    assert batch.rows.tolist() == [4, 5, 6]
    assert [len(row) for row in rows] == [6, 9, 3]
