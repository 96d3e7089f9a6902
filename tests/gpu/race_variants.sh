#!/bin/sh
# Race checks and times of the ways in which the row tile frees slots and gathers: sh tests/gpu/race_variants.sh
# FREES and GATHERS are explained in kernels/cuda/tile.cuh. About 30 s a pair.
for pair in ${*:-0:0 1:0 2:0 0:1 1:1 2:1}; do
  frees=${pair%:*} gathers=${pair#*:}
  sed -i "s/^#define FREES .*/#define FREES $frees/; s/^#define GATHERS .*/#define GATHERS $gathers/" kernels/cuda/tile.cuh
  echo "== FREES $frees GATHERS $gathers"
  compute-sanitizer --tool racecheck python3 -m pytest -q -p no:benchmark --require-gpu tests/gpu/test_emitted.py \
    -k 'small and fp16 and (dlrm or deepfm)' 2>&1 | grep -E '^=========.*(Race|Write|SUMMARY)|passed|failed'
  python3 -m kernels.bench --models DLRM,DeepFM,MMoE --rows 64,512,4096 --peers '' --reps 60 2>&1 | tail -12
done
