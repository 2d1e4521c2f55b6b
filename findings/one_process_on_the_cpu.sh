#!/usr/bin/env bash
# accelerate 1.15.0: `accelerate launch --cpu --num_processes 2` starts one process, and does not say so.
#
# Expected: two processes, as `torchrun --nproc_per_node 2` starts them; or an error.
# Seen: one, with num_processes=1: a run trains on half the samples per update that were planned.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0
cat > "$folder/count.py" <<'PYTHON'
from accelerate import PartialState

state = PartialState(cpu=True)
print(f"process {state.process_index} of {state.num_processes}")
PYTHON
export HF_HOME=$folder CUDA_VISIBLE_DEVICES=""
seen=$("$folder/venv/bin/accelerate" launch --cpu --num_processes 2 "$folder/count.py" 2> "$folder/errors")
echo "$seen"
[ "$seen" = "process 0 of 1" ]
