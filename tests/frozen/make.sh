#!/usr/bin/env bash
# How the bundles and cards here were made, by the program whose cards are of version 1: make.sh COMPRESSKIT FOLDER.
# They are data now: a later version writes other cards.
ck=$1
cp nets.py samples.py outputs.py "$2"
cd "$2"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
"$(dirname "$ck")/python" samples.py
run="--no-bench --quiet --force --threads 1"
words="words.pt --arch nets.py:Words --data words.npz $run"
pictures="pictures.pt --arch nets.py:Pictures --data pictures.npz $run"
bert="bert --data bert.npz --no-export $run"
llama="llama --data llama.npz --no-export $run"
go() { echo "$@"; "$ck" "$@"; }

# Whole bundles.
go quantize $words --method gptq --repair 2 --group-size 16 -o gptq
go quantize $words --method awq --repair 2 --bits 3 -o awq
cat > recipe.yaml <<'R'
steps:
  - prune.structured: {target-macs: 0.7, round-to: 4}
  - factorize.auto: {budget: 0.8, round-to: 2}
R
go run recipe.yaml pictures.pt --arch nets.py:Pictures --data pictures.npz --no-bench --quiet --force --no-cache -o recipe
go lora $words --epochs 1 --rank 2 -o lora
go prune $bert --method depth --drop 1 -o cards/depth
go quantize cards/depth --data bert.npz --method gptq --no-export $run -o hf

# Cards alone: the other ways to record facts.
go quantize $llama --method nf4 -o cards/nf4
for method in lora dora ia3 vera bottleneck; do go lora $pictures --method $method --epochs 1 --no-export -o cards/$method; done
go lora $words --method loftq --rank 2 --epochs 1 --no-export -o cards/loftq
go lora $llama --method prompt --tokens 4 --epochs 1 -o cards/prompt
go lora $pictures --method full --epochs 1 --no-export -o cards/full
go lora merge lora --arch nets.py:Words --no-export $run -o cards/merge
go factorize recipe --arch nets.py:Pictures --merge --no-export $run -o cards/dense
go prune $llama --method width --neurons 0.5 -o cards/width
go prune $pictures --method wanda --epochs 1 --no-export -o cards/wanda
go prune $pictures --method structured --target-macs 0.7 --epochs 2 --steps 2 --no-export -o cards/structured
go distill $pictures --method kd --teacher pictures.pt --teacher-arch nets.py:Pictures --epochs 1 --no-export -o cards/kd
go distill $pictures --method features --teacher pictures.pt --teacher-arch nets.py:Pictures --epochs 1 --no-export -o cards/features
go quantize $words --method qat --epochs 1 --no-export -o cards/qat
go quantize $words --method adaround --no-export -o cards/adaround
go quantize $words --method auto --no-export -o cards/auto
go quantize $pictures --method int8-static -o cards/static
go quantize $words --method int8-dynamic -o cards/dynamic
go quantize $pictures --method smoothquant -o cards/smooth

"$(dirname "$ck")/python" outputs.py .
rm -rf */report.html words.pt pictures.pt *.npz.tmp bert* llama*
for card in cards/*/; do mv "$card/compresskit.json" "${card%/}.json"; rm -r "$card"; done
