#!/bin/sh
#SBATCH --job-name=moe-codegen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
# Trains a mixture on the nodes of a Slurm job, one torchrun on each:
#
#     sbatch 07_slurm.sh RUN.toml OUT --fsdp-size -1 --ep-size 8
#
# A job that runs out of time is submitted again with the same line, or requeued, and goes on from its last checkpoint.
set -eu
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    --no-python moe-codegen train mix "$@"
