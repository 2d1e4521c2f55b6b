#!/bin/bash
# Run accelerate_finetune.py on several machines under SLURM: sbatch examples/slurm_multi_node.sh
# One launcher per machine, one process per GPU. A requeued job continues from its newest checkpoint.

#SBATCH --job-name=warmcos
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

GPUS_PER_NODE=8
# A folder that all machines can write to.
OUTPUT_DIR=${OUTPUT_DIR:-$PWD/output/$SLURM_JOB_ID}

MAIN_PROCESS_IP=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Each job has a port of its own.
MAIN_PROCESS_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MAIN_PROCESS_IP MAIN_PROCESS_PORT GPUS_PER_NODE OUTPUT_DIR

# Single quotes, because SLURM_NODEID differs on each machine.
srun bash -c 'accelerate launch \
    --config_file examples/accelerate_configs/multi_node.yaml \
    --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * GPUS_PER_NODE))" \
    --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_PROCESS_IP" \
    --main_process_port "$MAIN_PROCESS_PORT" \
    examples/accelerate_finetune.py \
    --output_dir "$OUTPUT_DIR" \
    "$@"' bash "$@"
