#!/bin/sh
# Trains a mixture on several hosts. Run it on every one of them, with the same arguments, the first host's name first:
#
#     HOSTS=2 PROCESSES=8 sh 06_many_hosts.sh first-host RUN.toml OUT --fsdp-size -1 --ep-size 8
#
# HOSTS is their number and PROCESSES the GPUs of each. The hosts meet at port 29500 of the first; OUT and the data lie on
# a disk that all of them see. Experts stay within a host where ep_size divides PROCESSES. A host that fails ends the run
# on all; the same command again goes on from the last checkpoint, also with another number of hosts or other sizes.
set -eu
first=$1
shift
exec torchrun \
    --nnodes "${HOSTS:-2}" --nproc-per-node "${PROCESSES:-8}" \
    --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29500}" --rdzv-id "${RUN:-moe-codegen}" \
    --no-python moe-codegen train mix "$@"
