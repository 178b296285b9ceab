# Sourced by *.sbatch. `run_and_requeue COMMAND…` starts COMMAND as the tasks of this job; when it ends with exit code 75
# (everything is saved, run me again) the job goes back to the queue, at most SIMDIST_MAX_REQUEUES times (default 100).
# So it does when a warning (USR1, USR2, TERM) killed COMMAND before it could listen: nothing was to be saved yet.
#
# Training asks SLURM for that itself, from inside; this is for what does not, and for containers without scontrol. Where
# the host has none either, a successor is submitted. It takes the script's #SBATCH lines and the options named below;
# give others (such as --signal) in the script rather than to sbatch.

run_and_requeue() {
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # since 22.05 srun does not take it over from sbatch
    export PYTHONUNBUFFERED=1 # not srun --unbuffered, whose pseudo-terminal fills the log with progress bars
    local code=0
    srun "$@" || code=$?
    case $code in
        75 | $((128 + 10)) | $((128 + 12)) | $((128 + 15))) ;;
        *) return "$code" ;;
    esac
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    job=${job:-$SLURM_JOB_ID} # SLURM_JOB_ID of an array's last task would name the whole array
    # Not RUNNING: the command has asked already, or somebody cancelled; SLURM is about to end this script.
    if [[ "$(squeue --noheader --jobs="$job" --format=%T)" != RUNNING ]]; then
        return "$code"
    fi
    local requeues=$((${SIMDIST_REQUEUES:-0} + ${SLURM_RESTART_COUNT:-0}))
    if ((requeues >= ${SIMDIST_MAX_REQUEUES:-100})); then
        echo "job $job was requeued $requeues times (SIMDIST_MAX_REQUEUES); submit it again by hand" >&2
        return "$code"
    fi
    if scontrol requeue "$job"; then
        echo "job $job is requeued"
        sleep 60 # until SLURM ends this script
        return "$code"
    fi
    submit_successor $((requeues + 1))
    return "$code"
}

submit_successor() {
    local requeues=$1 options=(--dependency="afterany:$job" --job-name="$SLURM_JOB_NAME" --requeue)
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
