#!/usr/bin/env bash
# One task's grid with one base on one GPU; stops after SECONDS_LEFT and packs its state into one archive, from which it goes on elsewhere.
#   DATA=path MODEL=path NAME=27M TASK=jcommonsenseqa bash benchmarks/grid/run.sh OUT ARCHIVE [JOBS] [SECONDS_LEFT] [STUDY.toml]
# The archive holds every finished cell (scores, answers, history), the weights of the best LoRA cells so far, and the report when the
# study is done. A group that was interrupted starts again; a chosen full model is trained again when its test is due elsewhere.
set -euo pipefail
out=$1 archive=$2 jobs=${3:-3} left=${4:-540} study=${5:-study.toml}
here=$(dirname "$0")
python=${PYTHON:-python}
case $TASK in jnli) task="{name=\"$here/../workbench/jnli_substitute.toml\",split=\"by_image\",data_dir=\"$DATA\"}" ;; *) task="{name=\"$TASK\",data_dir=\"$DATA\"}" ;; esac
mkdir -p "$out"
if [ -f "$archive" ]; then tar -xf "$archive" -C "$out"; fi
set +e
timeout --signal=INT --kill-after=20 "$left" "$python" -W ignore -m tsugiki study "$here/$study" --out "$out" --jobs "$jobs" \
  --set "tasks=[$task]" --set "models=[{path=\"$MODEL\",name=\"$NAME\"}]"
code=$?
"$python" "$here/best_weights.py" "$out" 2 > "$out/kept.txt"
(cd "$out" && find . -type f -not -path '*/weights/*' -not -path '*/checkpoint/*' -not -path './locks/*' -not -name kept.txt && cat kept.txt) > "$out.files"
tar -c -C "$out" -T "$out.files" | xz -3 -T0 > "$archive.part" && mv "$archive.part" "$archive"
exit $code
