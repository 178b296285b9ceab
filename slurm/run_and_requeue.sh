# Sourced by *.sbatch. `run_and_requeue COMMAND…` runs COMMAND as the tasks of this job. When it ends with exit code 75
# (saved, run me again), or was killed by a warning (USR1, USR2, TERM) before it could handle it, the job goes back to
# the queue, at most SIMDIST_MAX_REQUEUES times (default 100). simdist/core/requeue.py has the rules.
#
# Training requeues itself from inside; this is for the other commands, and for containers without scontrol. If the host
# has no scontrol either, a successor is submitted. It inherits the script's #SBATCH lines and the options named below;
# put others (such as --signal) into the script instead of passing them to sbatch.

requeue_rules=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/simdist/core/requeue.py

run_and_requeue() {
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # since 22.05 srun does not inherit it from sbatch
    export PYTHONUNBUFFERED=1 # not srun --unbuffered, whose pseudo-terminal fills the log with progress bars
    local code=0 answer=0
    srun "$@" || code=$?
    local requeues=$((${SIMDIST_REQUEUES:-0} + ${SLURM_RESTART_COUNT:-0}))
    python3 -I "$requeue_rules" "$code" "$requeues" "${SIMDIST_MAX_REQUEUES:-100}" || answer=$?
    case $answer in
        0) sleep 60 ;; # until SLURM ends this script
        3) submit_successor $((requeues + 1)) ;;
    esac
    return "$code"
}

submit_successor() {
    local requeues=$1
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    job=${job:-$SLURM_JOB_ID} # SLURM_JOB_ID of an array's last task would name the whole array
    local options=(--dependency="afterany:$job" --job-name="$SLURM_JOB_NAME" --requeue)
    options+=(--partition="$SLURM_JOB_PARTITION" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_NTASKS")
    options+=(--time="$(squeue --noheader --jobs="$job" --format=%l)")
    options+=(--output="$(squeue --noheader --jobs="$job" --Format=STDOUT:1000 | sed 's/ *$//')") # the same log
    options+=(${SLURM_NTASKS_PER_NODE:+--ntasks-per-node="$SLURM_NTASKS_PER_NODE"})
    options+=(${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
    options+=(${SLURM_GPUS_PER_NODE:+--gpus-per-node="$SLURM_GPUS_PER_NODE"})
    options+=(${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"})
    options+=(${SLURM_ARRAY_TASK_ID:+--array="$SLURM_ARRAY_TASK_ID"})
    # $0 is SLURM's copy of the script, which is copied again
    env --unset=SLURM_RESTART_COUNT SIMDIST_REQUEUES="$requeues" sbatch "${options[@]}" "$0" "${JOB_ARGUMENTS[@]}" ||
        echo "no successor of job $job could be submitted; submit it again by hand" >&2
}
