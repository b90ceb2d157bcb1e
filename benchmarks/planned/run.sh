#!/usr/bin/env bash
# The planned comparison on one GPU: DATA holds jcommonsenseqa/ jnli/ jnli_neg/ jsick/ wikinews_ja/, MODEL is the 27 M model's folder.
#   DATA=path MODEL=path bash benchmarks/planned/run.sh study OUT [JOBS]
#   DATA=path MODEL=path bash benchmarks/planned/run.sh check OUT    # hours, disk, rows and seeds
#   DATA=path MODEL=path bash benchmarks/planned/run.sh report OUT
set -euo pipefail
here=$(dirname "$0")
jcqa="{name=\"jcommonsenseqa\",split=\"official\",data_dir=\"$DATA\"}"
jnli="{name=\"$here/../workbench/jnli_substitute.toml\",split=\"by_image\",data_dir=\"$DATA\"}"
text="{text=\"$DATA/wikinews_ja/test.jsonl\",name=\"Wikinews\"}"
jobs=()
if [ "$1" = study ]; then jobs=(--jobs "${3:-1}"); fi
exec "${PYTHON:-python}" -m tsugiki "$1" "$here/study.toml" --out "$2" "${jobs[@]}" \
  --set "tasks=[$jcqa,$jnli]" --set "forgetting=[$jcqa,$jnli,$text]" --set "models=[{path=\"$MODEL\",name=\"27M\"}]"
