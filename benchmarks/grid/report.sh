#!/usr/bin/env bash
# One report over both tasks and both bases, from the archives that run.sh left (a later one's records replace an earlier one's).
#   ROOT=DIR DATA=path MODEL=path bash benchmarks/grid/report.sh ARCHIVE …
# DATA and MODEL are the paths that the runs were given: a run is found by what it was asked.
set -euo pipefail
here=$(dirname "$0")
python=${PYTHON:-python}
mkdir -p "$ROOT"
for archive in "$@"; do tar -xf "$archive" -C "$ROOT"; done
jnli="{name=\"$here/../workbench/jnli_substitute.toml\",split=\"by_image\",data_dir=\"$DATA\"}"
"$python" -W ignore -m tsugiki report "$here/study.toml" --out "$ROOT" \
  --set "tasks=[{name=\"jcommonsenseqa\",data_dir=\"$DATA\"},$jnli]" --set "models=[{path=\"$MODEL\",name=\"27M\"},{path=\"builtin\",name=\"10M\"}]"
"$python" "$here/cells.py" "$ROOT" > "$ROOT/cells.csv"
