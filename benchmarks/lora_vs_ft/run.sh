#!/usr/bin/env bash
# LoRA against full fine-tuning without a search. MODEL: a model's folder, or builtin; NAME: what the tables call it;
# WORK: what prepare.py wrote. More than one line may run on one GPU.
#   MODEL=path NAME=27M WORK=path bash benchmarks/lora_vs_ft/run.sh regret OUT TASK HALF     # one of twelve: jcommonsenseqa jnli wikinews × a b
#   MODEL=path NAME=27M WORK=path bash benchmarks/lora_vs_ft/run.sh causes OUT TASK          # jcommonsenseqa wikinews
set -euo pipefail
here=$(dirname "$0")
out=$2
case "$3" in
  jcommonsenseqa | jnli) task=$here/$3_half.toml ;;
  wikinews) task=$here/wikinews.toml ;;
esac
case "$1" in
  regret)
    exec "${PYTHON:-python}" -m tsugiki study "$here/regret.toml" --out "$out" \
      --set "tasks=[{name=\"$task\",split=\"$4\",data_dir=\"$WORK\"}]" --set "models=[{path=\"$MODEL\",name=\"$NAME\"}]"
    ;;
  causes)
    split=a
    if [ "$3" = wikinews ]; then split=standard; fi
    exec "${PYTHON:-python}" -m benchmarks.lora_vs_ft.causes --model "$MODEL" --name "$NAME" --task "$task" --split "$split" \
      --data "$WORK" --out "$out/causes-$NAME-$3.json"
    ;;
esac
