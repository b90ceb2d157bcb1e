#!/usr/bin/env bash
# LoRA against QLoRA: DATA holds jcommonsenseqa/, MODEL is the 27 M model's folder.
#   DATA=path MODEL=path bash benchmarks/qlora/run.sh study OUT
#   DATA=path MODEL=path bash benchmarks/qlora/run.sh report OUT
set -euo pipefail
here=$(dirname "$0")
jcqa="{name=\"jcommonsenseqa\",split=\"official\",data_dir=\"$DATA\"}"
exec "${PYTHON:-python}" -m tsugiki "$1" "$here/study.toml" --out "$2" \
  --set "tasks=[$jcqa]" --set "models=[{path=\"$MODEL\",name=\"27M\"}]"
