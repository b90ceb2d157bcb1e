#!/usr/bin/env bash
# The paper's grid on one GPU: DATA holds jcommonsenseqa/ jnli/ jnli_neg/ jsick/, MODEL is the 27 M model's folder.
#   DATA=path MODEL=path bash benchmarks/paper_grid/run.sh study OUT [JOBS]
#   DATA=path MODEL=path bash benchmarks/paper_grid/run.sh report OUT [--paper]
set -euo pipefail
here=$(dirname "$0")
jcqa="{name=\"jcommonsenseqa\",data_dir=\"$DATA\"}"
jnli="{name=\"$here/../workbench/jnli_substitute.toml\",split=\"by_image\",data_dir=\"$DATA\"}"
more=("${@:3}")
if [ "$1" = study ]; then more=(--jobs "${3:-1}"); fi
exec "${PYTHON:-python}" -m tsugiki "$1" "$here/study.toml" --out "$2" "${more[@]}" \
  --set "tasks=[$jcqa,$jnli]" --set "models=[{path=\"$MODEL\",name=\"27M\"}]"
