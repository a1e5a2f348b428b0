#!/usr/bin/env bash
# The study of docs/results/students.md and the curves of docs/results/speed.md on one GPU, all side by side:
#   benchmarks/gpu_study.sh OUT SECONDS
# OUT is as for `python -m benchmarks.students.study`, may hold foreign.tar too, and gets a log of each
# part. A call ends after SECONDS; the same one goes on. One process leaves most of a GPU idle: start
# NVIDIA's MPS before, so that they compute at the same time.
set -u
out=$1 end=$(($(date +%s) + $2))
export OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=2
rounds="adaptive.rounds=2 adaptive.images=512 adaptive.training.steps=500"
for file in resnet20.th resnet32.th train-00000.tar test-00000.tar; do
    [ -f "$out/$file" ] || { echo "$out holds no $file" >&2 && exit 2; }
done
mkdir -p "$out/logs"

part() { # NAME MODULE ARGUMENT ...
    local name=$1 left=$((end - $(date +%s)))
    shift
    [ "$left" -gt 0 ] || return 75
    timeout "$left" python3 -m "$@" --device cuda >"$out/logs/$name" 2>&1
    echo "$name: $?"
}

part published benchmarks.students.curves "$out" published --marks 2000 1000 400 200 100 50 25 &
part ours benchmarks.students.curves "$out" ours --marks 200 100 50 25 400 1000 &
part ours-2000 benchmarks.students.curves "$out" ours --marks 2000 &
for seed in 0 1; do
    part "main-$seed" benchmarks.students.study "$out" spread adversarial sgd imitation --seed $seed &
    part "others-$seed" benchmarks.students.study "$out" real noise plain whole deepdream --seed $seed &
    part "rounds-$seed" benchmarks.students.study "$out" adaptive warm starts wider ambiguous \
        "$rounds adaptive.compete=1.0" --seed $seed &
done
wait
