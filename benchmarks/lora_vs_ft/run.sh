#!/usr/bin/env bash
# LoRA against full fine-tuning without a search. MODEL: a model's folder, or builtin; NAME: what the tables call it; ENCODER: an encoder's folder;
# DATA: the published data; WORK: what prepare.py made of them. Several of these lines may run on one GPU.
#   MODEL=path NAME=27M ENCODER=path DATA=path WORK=path bash benchmarks/lora_vs_ft/run.sh study OUT [JOBS]    # also: seeds, variants, rates, prompts
#   MODEL=path NAME=27M WORK=path bash benchmarks/lora_vs_ft/run.sh regret OUT TASK HALF    # one of twelve: jcommonsenseqa jnli wikinews × a b
#   MODEL=path NAME=27M WORK=path bash benchmarks/lora_vs_ft/run.sh default OUT TASK HALF   # of these the default alone
#   MODEL=path NAME=27M WORK=path bash benchmarks/lora_vs_ft/run.sh causes OUT TASK         # jcommonsenseqa wikinews
set -euo pipefail
here=$(dirname "$0") python=${PYTHON:-python} out=$2
case "$1" in
  study | seeds | variants | rates | prompts)
    file=$here/$1-$NAME.toml # beside the study file, whose paths are relative to the project
    sed -e "s#\"MODEL\"#\"$MODEL\"#; s#\"NAME\"#\"$NAME\"#; s#\"ENCODER\"#\"${ENCODER:-}\"#" \
      -e "s#\"DATA\"#\"$DATA\"#; s#\"WORK\"#\"$WORK\"#" "$here/$1.toml" >"$file"
    trap 'rm -f "$file"' EXIT
    $python -m tsugiki study "$file" --out "$out" --jobs "${3:-1}" ${DRY:+--dry-run}
    ;;
  regret | default)
    only=()
    if [ "$1" = default ]; then only=(--set 'methods=[{name="default",kind="lora"}]'); fi
    task=$here/$3_half.toml
    if [ "$3" = wikinews ]; then task=$here/wikinews.toml; fi
    $python -m tsugiki study "$here/regret.toml" --out "$out" \
      --set "tasks=[{name=\"$task\",split=\"$4\",data_dir=\"$WORK\"}]" --set "models=[{path=\"$MODEL\",name=\"$NAME\"}]" ${only[@]+"${only[@]}"}
    ;;
  causes)
    task=$here/jcommonsenseqa_half.toml split=a rows=500
    if [ "$3" = wikinews ]; then task=$here/wikinews.toml split=standard rows=200; fi # its answers are long
    $python -m benchmarks.lora_vs_ft.causes --model "$MODEL" --name "$NAME" --task "$task" --split "$split" \
      --data "$WORK" --rows $rows --out "$out/causes-$NAME-$3.json"
    ;;
esac
