#!/bin/bash

# Parameters
#SBATCH --chdir=/shared/runs/20260101-000000-abcd-pretrain
#SBATCH --comment='{"clipa":"20260101-000000-abcd-pretrain","attempt":3}'
#SBATCH --error=/shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit/%j_0_log.err
#SBATCH --gres=gpu:2
#SBATCH --job-name=clipa-20260101-000000-abcd-pretrain-a3
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit/%j_0_log.out
#SBATCH --signal=USR2@90
#SBATCH --time=60

# setup
clipa_wrong="$(find /shared/runs/.code/abc /shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit/ -ignore_readdir_race ! -type l \( ! -uid "$(id -u)" ! -uid 0 -o -perm /022 \) -print -quit 2>/dev/null || :)"
if [ -n "$clipa_wrong" ]; then
  echo "clipa: $clipa_wrong: not executed, because others own it or can write to it" >&2; exit 1
fi
export NCCL_DEBUG=WARN
export ODD='it'"'"'s $HOME; rm -rf "x"'
export PYTHONPATH=/shared/runs/.code/abc PYTHONSAFEPATH=1
# Had the submitter died before submitit gave the task its final name, the job would look for it in vain.
[ -e /shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit/"$SLURM_JOB_ID"_submitted.pkl ] || ln -s task.pkl /shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit/"$SLURM_JOB_ID"_submitted.pkl
clipa_tail() { /usr/bin/python3 -m clipa.launch.tail /shared/runs/20260101-000000-abcd-pretrain 3 1 "$@"; }
trap 'clipa_tail asked' TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit/%j_%t_log.out --error /shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit/%j_%t_log.err --kill-on-bad-exit=1 /usr/bin/python3 -u -m submitit.core._submit /shared/runs/20260101-000000-abcd-pretrain/logs/3/submitit &
clipa_srun=$!
wait "$clipa_srun"; clipa_rc=$?
while [ "$clipa_rc" -gt 128 ] && kill -0 "$clipa_srun" 2>/dev/null; do wait "$clipa_srun"; clipa_rc=$?; done


# teardown
trap '' TERM
clipa_tail ended "$clipa_rc"; clipa_code=$?
exit "$clipa_code"
