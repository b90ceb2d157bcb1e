"""An adapter that was trained elsewhere (peft, LLaMA-Factory, Unsloth) as a run: scored like any
other, with a row in the tables."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsugiki.config.run import RunConfig
from tsugiki.errors import ModelError
from tsugiki.files import new_folder
from tsugiki.model.export import import_adapter, read_adapter
from tsugiki.model.loading import Base, num_parameters
from tsugiki.runs.store import Run
from tsugiki.train.meter import Measurement, device_name

FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_checksum(config: RunConfig) -> dict[str, str]:
    """What names a run besides the rest: sha256 of the adapter's files; nothing for a run that
    trains."""
    if config.adapter is None:
        return {}
    total = hashlib.sha256()
    for name in FILES:
        path = Path(config.adapter) / name
        try:
            total.update(path.read_bytes())
        except OSError as broken:
            raise ModelError(
                f"adapter {path}: cannot be read: {broken.strerror}. Name a folder that peft wrote "
                "(safetensors)"
            ) from None
    return {"adapter_sha256": total.hexdigest()}


def other_base(config: RunConfig) -> str | None:
    """What to tell of an adapter that names another base than the one it is put on; None where
    there is nothing to say."""
    assert config.adapter is not None, "only for runs that name an adapter"
    named = read_adapter(Path(config.adapter))[0].get("base_model_name_or_path")
    here = {Path(config.model.path).name, config.model.label}
    if not named or Path(str(named)).name in here:
        return None
    return (
        f"{config.adapter}: says that it was made for {named}, and is put on "
        f"{config.model.path}: of another base its score says nothing"
    )


def attach_imported(
    base: Base,
    config: RunConfig,
    run: Run,
    study: str | None,
    *,
    begin: Callable[[], None],
    note: Callable[[str], None],
) -> None:
    """Puts the adapter on the base, keeps a copy in the run folder, and records what it is.
    `begin` is called when the adapter is known to fit."""
    assert config.adapter is not None, "only for runs that name an adapter"
    size = num_parameters(base.model)
    grafted = import_adapter(base.model, Path(config.adapter))
    if (said := other_base(config)) is not None:
        note(said)
    begin()
    _keep_copy(Path(config.adapter), run.folder / "adapter")
    trainable = sum(parameter.numel() for parameter in grafted.parameters.values())
    lora = grafted.config
    nothing = Measurement(
        device=device_name(base.device), num_steps=0, step_s_median=None, step_s_mean=None,
        tokens_per_s=None,
        peak_allocated_bytes=None, peak_reserved_bytes=None, peak_process_bytes=None,
    )  # fmt: skip
    adapter: dict[str, Any] = {
        "targets": lora.targets,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "from": Path(config.adapter).name,
    }
    run.update(
        status="running", alone=True, study=study, trainable=trainable, total=size + trainable,
        steps=0, lanes=1, step="none: trained elsewhere",
        adapter=adapter, measurement=nothing.to_json(),
        weights_bytes=(run.folder / "adapter" / FILES[1]).stat().st_size,
        trained_on={},
    )  # fmt: skip


def _keep_copy(source: Path, folder: Path) -> None:
    with new_folder(folder) as draft:
        for name in FILES:
            shutil.copyfile(source / name, draft / name)
