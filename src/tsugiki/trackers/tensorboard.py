"""TensorBoard: event files under OUT/tensorboard/STUDY/RUN, one folder a run."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tsugiki.runs.reading import RunRecord
from tsugiki.trackers.tracker import Numbers, Settings, Tracker


class TensorBoard(Tracker):
    """Writes event files: `tensorboard --logdir OUT/tensorboard`.

    Args:
        folder: where they go (default: `tensorboard` beside the runs).

    A run that goes on hides what an earlier try wrote of the steps that are made again.
    """

    def __init__(self, folder: str | Path | None = None):
        super().__init__()
        self.folder = None if folder is None else Path(folder)

    def open(self, record: RunRecord, after: int | None) -> _EventFiles:
        root = self.folder or record.folder.parents[1] / "tensorboard"
        study = (record.outcome.study or "").replace("/", "_")
        folder = root / study / record.folder.name
        # Only where there is something to hide: within one second files are read in any order.
        hides = after is not None and any(folder.glob("events.*"))
        return _EventFiles(folder, after + 1 if after is not None and hides else None)


class _EventFiles:
    def __init__(self, folder: Path, purge_from: int | None):
        self.writer = SummaryWriter(str(folder), purge_step=purge_from)

    def begin(self, settings: Settings) -> None:
        lines = (f"    {name} = {value}" for name, value in settings.items())
        self.writer.add_text("settings", "\n".join(lines))
        self.writer.flush()

    def numbers(self, values: Numbers, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def end(self, status: str, reason: str, settings: Settings, values: Numbers) -> None:
        self.writer.add_text("status", f"{status}: {reason}" if reason else status)
        files = self.writer.file_writer
        if settings and files is not None:  # a row of TensorBoard's table of hyper-parameters
            for summary in hparams(dict(settings), dict(values)):
                files.add_summary(summary)
        self.writer.close()
