"""What stands under Table 2: device, precision, protocol, the fairness lock, and the paper's own
figures as quoted rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tsugiki.config.study import Range
from tsugiki.data.leaks import shared_rows
from tsugiki.data.tasks import Task
from tsugiki.report.paper import PAPER
from tsugiki.report.texts import chosen_text
from tsugiki.report.words import Language, named_in, pick
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.study.cells import Cell, StudyResult, task_label


def results_notes(result: StudyResult, language: Language) -> list[str]:
    """What a reader must know to read Table 2, differences between compared runs included."""
    records = [
        record for cell in result.chosen.values() if (record := result.record(cell)) is not None
    ]
    notes = [
        *_machine_notes(records, language),
        *_score_notes(result, records, language),
        *_cost_notes(language),
    ]
    notes.append(_choice_note(result, language))
    notes += differences(result, language)
    if result.study.reference_rows:
        title = "日本語の大規模な基盤モデルに対する LoRA チューニング"
        notes.append(
            pick(
                language,
                f"† {PAPER}「{title}」NLP2023 の表 2 から引用。モデルは別のもの、A100 での値。"
                "ROUGE の計算規則は書かれていません（規則不明）。学習対象パラメータの欄は、FT "
                "ではモデル全体、LoRA ではアダプタの数（百万）。メモリの欄は、"
                "24 MB（1B-LoRA）と 2,635 MB（1B-FT）がパラメータ数 × 4 バイト、× 2 "
                "バイトに等しく、ファイルの大きさであってピークメモリではありません。"
                "FT のバッチは 8 または 16（論文の表 3）。‡ 検証データ全体での値で、"
                "比較できません。",
                f"† Quoted from {PAPER}「{title}」, NLP2023, Table 2: other models, A100. By which "
                "rule its ROUGE was scored is not said: rule unknown. Its "
                "trainable parameters are the whole model's for FT and the adapter's for LoRA, in "
                "millions. Of its memory column 24 MB (1B-LoRA) and "
                "2,635 MB (1B-FT) are 4 and 2 bytes a parameter: the size of a file, no peak "
                "memory. Its FT searched batches of 8 and 16 (its "
                "Table 3). ‡ Scored there on the whole validation set, so not comparable.",
            )
        )
    left_open = pick(language, "選ばれた設定の詳細", "The chosen cells in detail")
    return notes + [
        f"{left_open}: {text}."
        for text in sorted({protocol_text(record, language) for record in records})
    ]


def _machine_notes(records: Sequence[RunRecord], language: Language) -> list[str]:
    notes = set()
    for record in records:
        what, versions = record.provenance, record.provenance.versions
        numerics, method = what.numerics.model_dump(), record.config.method
        device, model, precision, step = (
            ("計算機", "モデル", "精度", "最適化の 1 ステップ")
            if language == "ja"
            else ("Device", "Model", "Precision", "Optimiser step")
        )
        notes.add(
            f"{device}: {what.device}; torch {versions['torch']}, transformers "
            f"{versions['transformers']}, tsugiki {versions['tsugiki']}."
        )
        notes.add(
            f"{model} {record.config.model.label}: {pick(language, '重みの', 'weights of')} sha256 "
            f"{what.model_sha256}."
        )
        stored = pick(
            language,
            "行列積 {compute}、凍結した重み {base}、学習する値 {trained}",
            "products {compute}, base {base}, trained {trained}",
        )
        notes.add(f"{precision}, {method}: {stored.format(**numerics)}.")
        if record.outcome.step:
            notes.add(f"{step}, {method}: {record.outcome.step}.")
    return sorted(notes)


def _score_notes(
    result: StudyResult, records: Sequence[RunRecord], language: Language
) -> list[str]:
    tests = [test for record in records if (test := record.scores("test"))]
    signatures = sorted({score.signature for test in tests for score in test.scores})
    seeds = result.study.seeds
    several_ja = (
        f"「{seeds} シード」は全シードの平均（± は標準偏差）。"
        "誤りの種類と生成例は最初のシードのもの"
        if seeds > 1
        else "シードは 1 個"
    )
    several_en = (
        f"“{seeds} seeds”: means over them (± their standard deviation); failure classes and "
        "answers are the first seed's"
        if seeds > 1
        else "one seed"
    )
    rule = pick(
        language,
        "評価値: 平均 [95 % ブートストラップ区間、2,000 回、互いに依存する行はグループごと。"
        "全問正解・全問不正解では Wilson の区間]。"
        "シードが 2 個なら事例とシードのブートストラップ、3 個以上なら t 区間。"
        f"件数はテストの事例数、{several_ja}。"
        "検証の値は探索した設定の最良なので、区間を付けません。",
        "Scores: mean [95 % bootstrap interval, 2,000 resamples, whole groups where rows depend on "
        "each other; Wilson's where all answers are right or "
        "all wrong; with two seeds they are drawn too, from three on a t interval]; n = test "
        f"examples; {several_en}. "
        "Validation is the best of the cells, so it has no interval.",
    )
    return [f"{rule} {' ; '.join(signatures)}"]


def _cost_notes(language: Language) -> list[str]:
    return [
        pick(
            language,
            "秒/ステップ: 中央値 / 平均。最初の 5 ステップを除き、計算機を占有した値"
            "（並行して学習した場合は 40 ステップを改めて計測、2 巡目の値）。「バッチ 8」"
            "は論文のバッチ。「レーン内」は、同じベースモデルの上で多数のアダプタをまとめて学習した"
            "ときの 1 アダプタあたりの時間（括弧内はアダプタ数）で、"
            "単独の時間とは比較できません。",
            "Seconds a step: median / mean, the first 5 steps left out, the device to itself "
            "(where cells ran side by side: a probe of 40 steps, timed the second time round). @8: "
            "at the paper's batch of 8. "
            "Among lanes: a step's time for each adapter where many trained in one pass over the "
            "base (their number in brackets); not to be set beside "
            "the others.",
        ),
        pick(
            language,
            "メモリ: CUDA では PyTorch のアロケータの最大値（使用 / 確保。"
            "記録して再生するステップは記録中の値）。"
            "CPU ではプロセス全体の常駐量の最大値で、設定を順に学習するにつれて増えるだけです。",
            "Memory: peak of PyTorch's allocator, allocated / reserved, on CUDA (a captured step's "
            "is taken while it is recorded); "
            "on a CPU the largest resident size of the whole process, which only grows from cell "
            "to cell.",
        ),
    ]


def _choice_note(result: StudyResult, language: Language) -> str:
    counts = Counter(cell.key for cell in result.cells)
    of = pick(language, "{n} 設定中の最良", "best of {n}")
    chosen = "; ".join(
        f"{' '.join(cell.key)}: {chosen_text(cell)} ({of.format(n=counts[cell.key])})"
        for cell in result.chosen.values()
    )
    rule = pick(
        language,
        "設定は検証データの評価値で選び、テストは選ばれた設定で一度だけ評価しました。",
        "Each cell was chosen by its validation score; the test set was read once, by the chosen "
        "cell.",
    )
    return f"{rule} {chosen}.{_also_tested(result, language)}"


def _also_tested(result: StudyResult, language: Language) -> str:
    """Names the cells that read test though they are not chosen now: chosen in a smaller grid,
    say, or before they were trained again."""
    chosen = {cell.label for cell in result.chosen.values()}
    folders = {record.folder for label, record in result.records.items() if label in chosen}
    others: dict[Path, str] = {}
    for label, record in result.records.items():
        if record.scores("test") is not None and record.folder not in folders:
            others.setdefault(record.folder, label)
    if not others:
        return ""
    said = pick(
        language,
        " 次の設定もテストで評価されています（選択には使っていません）: {cells}。",
        " Test was also read by other cells (it chose nothing): {cells}.",
    )
    return said.format(cells="; ".join(others.values()))


def protocol_text(record: RunRecord, language: Language) -> str:
    """The settings of one chosen run that the paper does not give."""
    train = record.config.train
    if not method_of(record.config).trains:
        there = record.outcome.adapter
        assert there is not None, "an imported run says what it is"
        kind = f"{there.targets}, r = {there.rank}, α = {there.alpha:g}"
        return pick(
            language,
            f"読み込んだアダプタ（{kind}）。学習は別のツールによるもので、何で学習したかは不明",
            f"imported adapter ({kind}): trained elsewhere, on what is not known here",
        )
    method = method_of(record.config).told(record.config)
    warm = (
        pick(language, f"、ウォームアップ {train.warmup:.0%}", f" with {train.warmup:.0%} warm-up")
        if train.warmup
        else ""
    )
    schedule = f"{train.schedule} {pick(language, 'スケジュール', 'rate')}{warm}"
    decay = pick(
        language,
        f"AdamW、weight decay {train.weight_decay:g}、勾配ノルムは最大 {train.clip:g}",
        f"AdamW, weight decay {train.weight_decay:g}, gradient norm at most {train.clip:g}",
    )
    length = record.outcome.max_length
    rest = pick(
        language,
        f"シード {train.seed}; 最長 {length:,} トークン; greedy 生成",
        f"seed {train.seed}; at most {length:,} tokens; greedy decoding",
    )
    return f"{method}; {decay}; {schedule}; {rest}"


def differences(result: StudyResult, language: Language) -> list[str]:
    """The fairness lock: every training setting in which compared chosen cells differ, unless all
    of them tried the same values of it."""
    notes = []
    differ = pick(language, "比較した設定は {name} が異なります", "compared cells differ in {name}")
    for model in result.study.models:
        for choice in result.study.tasks:
            here = [
                cell
                for key, cell in result.chosen.items()
                if key[:2] == (model.label, task_label(choice))
            ]
            # How an imported one was trained is not known.
            cells = [cell for cell in here if method_of(cell.config).trains]
            for name in type(cells[0].config.train).model_fields if len(cells) > 1 else ():
                values = {cell.method.name: getattr(cell.config.train, name) for cell in cells}
                tried = {cell.method.name: _tried_values(cell, name) for cell in cells}
                if len(set(tried.values())) > 1 and len(set(values.values())) > 1:
                    text = ", ".join(
                        f"{method} {value}{_of(tried[method], language)}"
                        for method, value in values.items()
                    )
                    notes.append(f"{task_label(choice)}: {differ.format(name=name)}: {text}.")
    return notes


def _tried_values(cell: Cell, name: str) -> tuple[object, ...]:
    """What its method tried of a setting: the values, or the range; one where it was not
    searched."""
    tried = cell.method.grid.get(name)
    if isinstance(tried, Range):
        return (tried.low, tried.high, tried.log)
    return (
        tuple(sorted(set(tried), key=str))
        if tried is not None
        else (getattr(cell.config.train, name),)
    )


def _of(tried: tuple[object, ...], language: Language) -> str:
    return (
        "" if len(tried) == 1 else pick(language, f"（{len(tried)} 個から）", f" (of {len(tried)})")
    )


def comparable_notes(result: StudyResult, language: Language) -> list[str]:
    """Which numbers of the report may be set beside which, and which may not."""
    records = [
        record for cell in result.chosen.values() if (record := result.record(cell)) is not None
    ]
    several = [
        len({one(record) for record in records}) > 1
        for one in (lambda r: r.provenance.device, lambda r: r.provenance.versions["torch"])
    ]
    splits = [
        choice
        for choice in result.study.tasks
        if choice.split or choice.train_rows or choice.eval_rows
    ]
    ja = [
        "同じタスク・同じモデルの行どうしは、同じデータ、プロンプト、バッチ、長さ、評価方法で、"
        "比較できます（異なる設定があれば表 2 の下に挙げています）。",
        "異なるタスク、分割、ラベルの版の評価値どうしは比較できません。ROUGE "
        "は署名が同じ場合だけ比較できます。",
        "CPU のメモリはプロセス全体の値で、設定どうしを比べるものではありません。",
    ]
    en = [
        "Rows of one task and model share data, prompt, batch, length and scoring, and may be "
        "compared (settings that differ stand under Table 2).",
        "Scores of different tasks, splits or label versions may not be compared; ROUGE only under "
        "one signature.",
        "Memory on a CPU is that of the whole process and does not compare cells.",
    ]
    if splits:
        rows = ", ".join(
            f"{task_label(one)}" + (f" ({one.train_rows:,})" if one.train_rows else "")
            for one in splits
        )
        ja.append(f"分割または件数を指定したタスクは、文献の値と比較できません: {rows}。")
        en.append(
            f"Tasks with a named split or fewer rows are no scores of the literature: {rows}."
        )
    if any(several):
        ja.append(
            "計算機または torch の版が異なる行があります。時間とメモリは、"
            "同じ計算機の行どうしだけを比べてください。"
        )
        en.append(
            "Rows come from different devices or torch versions: compare times and memory within "
            "one device only."
        )
    if result.study.reference_rows:
        ja.append("論文から引用した行は、モデルも計算機も異なります。傾向だけを見てください。")
        en.append(
            "Rows quoted from the paper are of other models and another device: read them as a "
            "tendency."
        )
    return ja if language == "ja" else en


def leak_notes(task: Task, language: Language) -> list[str]:
    """How much of validation and test stands in the training data, and of test in validation;
    nothing where nothing does."""
    pairs = (("validation", "train"), ("test", "train"), ("test", "validation"))
    return [note for part, other in pairs if (note := _leak_note(task, part, other, language))]


def _leak_note(task: Task, part: str, other: str, language: Language) -> str | None:
    shared = shared_rows(task, part, other)
    if not (shared.same or shared.mirrored or shared.grouped):
        return None
    n = len(task.examples[part])
    english = {"train": "training", "validation": "validation"}[other]
    return pick(
        language,
        f"{named_in(part.capitalize(), 'ja')} {n:,} 件のうち、"
        f"{named_in(other.capitalize(), 'ja')}データと同文 {shared.same:,}、"
        f"2 文が入れ替わったもの {shared.mirrored:,}、同じグループ（画像など）"
        f"{shared.grouped:,}（NFKC 正規化後）。",
        f"of {n:,} {part} rows {shared.same:,} stand in the {english} data too, "
        f"{shared.mirrored:,} with their two fields swapped, "
        f"{shared.grouped:,} more are of a group (an image, say) that is there (after NFKC).",
    )


def shared_note(result: StudyResult, language: Language) -> list[str]:
    """How the cells were trained: many in one pass, shorter ones from a longer run's
    checkpoints."""
    records = [record for cell in result.cells if (record := result.record(cell)) is not None]
    shared = sum(record.outcome.branch is not None for record in records)
    notes = []
    if shared:
        notes.append(
            pick(
                language,
                f"{len(records)} 設定のうち {shared} は、"
                "エポック数だけが大きい別の設定の途中のチェックポイントから続けたもの（学習率が途"
                "中まで同じになるスケジュールの場合に限る。"
                f"結果は初めから学習した場合と同じ）。",
                f"{shared} of {len(records)} cells went on from a checkpoint of a cell that "
                "differs in its epochs alone (only where the schedule gives "
                "both the same rates up to there; the result is that of training from the start).",
            )
        )
    lanes = Counter(
        record.outcome.lanes or 1 for record in records if method_of(record.config).together
    )
    if max(lanes, default=1) > 1:
        text = ", ".join(f"{count} × {number}" for number, count in sorted(lanes.items()))
        notes.append(
            pick(
                language,
                "LoRA の設定は、1 つのベースモデルの上でまとめて学習しました（設定の数 × "
                f"同時に学習したアダプタの数: {text}）。",
                "LoRA cells trained together over one base (cells × adapters in one pass: "
                f"{text}).",
            )
        )
    return notes
