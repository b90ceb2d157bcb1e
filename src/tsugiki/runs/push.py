"""An exported adapter as a repository on the Hub: new, private, whole."""

from __future__ import annotations

from pathlib import Path

from tsugiki.errors import ModelError, first_line
from tsugiki.model.folder import BUILTIN_NAME
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.use import export_run


def push_adapter(record: RunRecord, folder: Path, repository: str) -> str:
    """Writes the adapter to `folder`, with its card and scores, and that to a new private
    repository `owner/name`; its address.

    Raises:
        ModelError: its base is no model of the Hub; the repository exists; the Hub refuses (its
            reason is told). What was written to `folder` stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    base = record.config.model.path
    if base == BUILTIN_NAME or Path(base).exists():
        raise ModelError(
            f"{record.folder}: --push: its base, {base}, lies on this machine alone, so that "
            "nobody could use the adapter. Publish the base first, and train over its name on the "
            "Hub"
        )
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ModelError(f'--push "{repository}": must be owner/name')
    export_run(record, folder)
    hub = HfApi()
    try:
        address = hub.create_repo(repository, private=True, exist_ok=False)
        said = f"{record.folder.name}, by tsugiki"
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=said)
    except (HfHubHTTPError, OSError, ValueError) as broken:
        raise ModelError(
            f"--push {repository}: the Hub answered: {first_line(broken)}. The adapter is in "
            f"{folder}; a token that may write is given by HF_TOKEN"
        ) from None
    return str(address)
