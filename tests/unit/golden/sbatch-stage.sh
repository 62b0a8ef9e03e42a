#!/bin/bash

# Parameters
#SBATCH --account=proj
#SBATCH --chdir=/shared/runs/20260101-000000-abcd-stage
#SBATCH --comment='{"clipa":"20260101-000000-abcd-stage","attempt":1,"note":"it'"'"'s mine"}'
#SBATCH --cpus-per-task=2
#SBATCH --error=/shared/runs/20260101-000000-abcd-stage/logs/1/submitit/%j_0_log.err
#SBATCH --job-name=clipa-20260101-000000-abcd-stage-a1
#SBATCH --mail-type=END
#SBATCH --mail-user=a@b.org
#SBATCH --mem=4G
#SBATCH --nice=10
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/20260101-000000-abcd-stage/logs/1/submitit/%j_0_log.out
#SBATCH --partition=transfer
#SBATCH --requeue
#SBATCH --signal=USR2@30
#SBATCH --time=360

# setup
clipa_wrong="$(find /shared/runs/.code/abc /shared/runs/20260101-000000-abcd-stage/logs/1/submitit/ -ignore_readdir_race ! -type l \( ! -uid "$(id -u)" ! -uid 0 -o -perm /022 \) -print -quit 2>/dev/null || :)"
if [ -n "$clipa_wrong" ]; then
  echo "clipa: $clipa_wrong: not executed, because others own it or can write to it" >&2; exit 1
fi
# The site's shell functions (module, ml) come from its profile, which a batch script does not read.
clipa_path="$PATH"
type module >/dev/null 2>&1 || . /etc/profile >/dev/null 2>&1 </dev/null || :
for clipa_init in "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash" "${MODULESHOME:-/usr/share/modules}/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do
  type module >/dev/null 2>&1 || { [ -r "$clipa_init" ] && . "$clipa_init" >/dev/null 2>&1; } || :
done
export PATH="$clipa_path:$PATH"
clipa_line=; clipa_words=/dev/null
clipa_file="$(mktemp)" && clipa_words="$clipa_file" && exec 3>&2 2>"$clipa_words"
clipa_setup_failed() {
  clipa_code=$1; trap - ERR EXIT; [ ! -f "$clipa_words" ] || { exec 2>&3; cat "$clipa_words" >&2; }
  PYTHONPATH=/shared/runs/.code/abc PYTHONSAFEPATH=1 /usr/bin/python3 -m clipa.launch.tail /shared/runs/20260101-000000-abcd-stage 1 1 setup "$clipa_code" --line "$clipa_line" --words "$clipa_words"; clipa_code=$?
  rm -f "$clipa_file"; exit "$clipa_code"
}
trap 'clipa_code=$?; clipa_number=$LINENO; [ "${#BASH_SOURCE[@]}" -gt 1 ] || { clipa_line="$(sed -n "${clipa_number}p" "$0")"; clipa_setup_failed "$clipa_code"; }' ERR
trap 'clipa_setup_failed $?' EXIT
module load cuda/12
trap - ERR EXIT
# Modules before 4 say an error and return 0.
grep -q ":ERROR:" "$clipa_words" && clipa_line="module" && clipa_setup_failed 1
if [ -f "$clipa_words" ]; then exec 2>&3 3>&-; cat "$clipa_words" >&2; rm -f "$clipa_words"; fi
export NCCL_DEBUG=WARN
export ODD='it'"'"'s $HOME; rm -rf "x"'
export PYTHONPATH=/shared/runs/.code/abc PYTHONSAFEPATH=1
# Had the submitter died before submitit gave the task its final name, the job would look for it in vain.
[ -e /shared/runs/20260101-000000-abcd-stage/logs/1/submitit/"$SLURM_JOB_ID"_submitted.pkl ] || ln -s task.pkl /shared/runs/20260101-000000-abcd-stage/logs/1/submitit/"$SLURM_JOB_ID"_submitted.pkl
clipa_tail() { /usr/bin/python3 -m clipa.launch.tail /shared/runs/20260101-000000-abcd-stage 1 1 "$@"; }
trap 'clipa_tail asked' TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/20260101-000000-abcd-stage/logs/1/submitit/%j_%t_log.out --error /shared/runs/20260101-000000-abcd-stage/logs/1/submitit/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=2 /usr/bin/python3 -u -m submitit.core._submit /shared/runs/20260101-000000-abcd-stage/logs/1/submitit &
clipa_srun=$!
wait "$clipa_srun"; clipa_rc=$?
while [ "$clipa_rc" -gt 128 ] && kill -0 "$clipa_srun" 2>/dev/null; do wait "$clipa_srun"; clipa_rc=$?; done


# teardown
trap '' TERM
clipa_tail ended "$clipa_rc"; clipa_code=$?
# Without a working Python the job still goes on, as often as attempts are allowed.
case "$clipa_code" in 0|10|11) ;; *) [ "${SLURM_RESTART_COUNT:-0}" -lt 4 ] && scontrol requeue "$SLURM_JOB_ID" ;; esac
exit "$clipa_code"
