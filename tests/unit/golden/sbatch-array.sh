#!/bin/bash

# Parameters
#SBATCH --array=1,3,12%2
#SBATCH --chdir=/shared/runs
#SBATCH --comment='{"clipa":"20260101-000000-abcd","phase":"pretrain"}'
#SBATCH --cpus-per-task=4
#SBATCH --dependency=aftercorr:77
#SBATCH --error=/shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/%a/%A_%a_0_log.err
#SBATCH --job-name=clipa-20260101-000000-abcd-pretrain-a1
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/%a/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60

# setup
case "$SLURM_ARRAY_TASK_ID" in
  1) clipa_run=(/shared/runs/20260101-000000-abcd-01-pretrain 1 1) ;;
  3) clipa_run=(/shared/runs/20260101-000000-abcd-03-pretrain 1 1) ;;
  12) clipa_run=(/shared/runs/20260101-000000-abcd-12-pretrain 4 4) ;;
esac
clipa_wrong="$(find /shared/runs/.code/abc /shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/"$SLURM_ARRAY_TASK_ID"/ -ignore_readdir_race ! -type l \( ! -uid "$(id -u)" ! -uid 0 -o -perm /022 \) -print -quit 2>/dev/null || :)"
if [ -n "$clipa_wrong" ]; then
  echo "clipa: $clipa_wrong: not executed, because others own it or can write to it" >&2; exit 1
fi
export NCCL_DEBUG=WARN
export ODD='it'"'"'s $HOME; rm -rf "x"'
export PYTHONPATH=/shared/runs/.code/abc PYTHONSAFEPATH=1
# Had the submitter died before submitit gave the task its final name, the job would look for it in vain.
[ -e /shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/"$SLURM_ARRAY_TASK_ID"/"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"_submitted.pkl ] || ln -s task.pkl /shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/"$SLURM_ARRAY_TASK_ID"/"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"_submitted.pkl
CLIPA_MEETING="$(/usr/bin/python3 -m clipa.host.meeting)" || exit 1
export CLIPA_MEETING
clipa_tail() { /usr/bin/python3 -m clipa.launch.tail "${clipa_run[@]}" "$@"; }
trap 'clipa_tail asked' TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/%a/%A_%a_%t_log.out --error /shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/%a/%A_%a_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=4 /usr/bin/python3 -u -m submitit.core._submit /shared/runs/.arrays/clipa-20260101-000000-abcd-pretrain-a1/"$SLURM_ARRAY_TASK_ID" &
clipa_srun=$!
wait "$clipa_srun"; clipa_rc=$?
while [ "$clipa_rc" -gt 128 ] && kill -0 "$clipa_srun" 2>/dev/null; do wait "$clipa_srun"; clipa_rc=$?; done


# teardown
trap '' TERM
clipa_tail ended "$clipa_rc"; clipa_code=$?
# Without a working Python the job still goes on, as often as attempts are allowed.
case "$clipa_code" in 0|10|11) ;; *) [ "${SLURM_RESTART_COUNT:-0}" -lt 4 ] && scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" ;; esac
exit "$clipa_code"
