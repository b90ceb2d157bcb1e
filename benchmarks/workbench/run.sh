#!/usr/bin/env bash
# Runs the workbench study on one GPU: DATA holds jcommonsenseqa/ jnli/ jnli_neg/ jsick/ wikinews_ja/, MODEL is the 27 M model's folder.
#   DATA=path MODEL=path bash benchmarks/workbench/run.sh OUT [JOBS]
set -euo pipefail
here=$(dirname "$0")
tasks="[{name=\"jcommonsenseqa\",data_dir=\"$DATA\"},{name=\"$here/jnli_substitute.toml\",split=\"by_image\",data_dir=\"$DATA\"},{name=\"$here/jnli_substitute.toml\",split=\"paper\",data_dir=\"$DATA\"},{name=\"wikinews_ja\",data_dir=\"$DATA\"}]"
models="[{path=\"$MODEL\",name=\"27M\"}]"
if [ "${3:-}" = again ]; then exec "${PYTHON:-python}" "$here/measure_again.py" "$here/study.toml" "$1" --set "tasks=$tasks" --set "models=$models"; fi
"${PYTHON:-python}" -m tsugiki study "$here/study.toml" --out "$1" --jobs "${2:-8}" --set "tasks=$tasks" --set "models=$models"
