# shellcheck shell=bash disable=SC2034  # much of it is used by who sources it
# What the MMLU experiments share: their variables, where things are, and how a script is started. Sourced by them.

VARIABLES='  DATA_DIR           holds data/mmlu_data, models and indices; results go to its experiments/
  SIZE               of the released checkpoint and index: base, large, xl, xxl           xl
  EXPERIMENT_NAME    the folder of the results                                            JOB-SIZE-mmlu-SETTING
  MODEL_PATH         another checkpoint, or none                                          DATA_DIR/models/atlas/SIZE
  INDEX_PATH         another index                                                        DATA_DIR/indices/atlas/wiki/SIZE
  PASSAGES           files of passages (JSON lines) to index in its place
  READER             the T5                                                               google/t5-SIZE-lm-adapt
  RETRIEVER          the encoder                                                          facebook/contriever
  PRECISION          fp32, fp16 or bf16                                                   bf16
  NUM_GPUS           processes on each machine                                            the GPUs that are seen
  FLAG ...           go to the Python script (--help lists them); the last of a flag counts'

prepare_experiment() { # KIND
    size=${SIZE:-xl}
    export RUNS=$DATA_DIR # what an image may write to
    # shellcheck source=slurm/lib/python.bash
    source "$atlas/../slurm/lib/python.bash"
    # shellcheck source=slurm/lib/launch.bash
    source "$atlas/../slurm/lib/launch.bash"
    python=$(choose_python "$(dirname -- "$atlas")")
    gpus=$(processes_here)
    questions=$DATA_DIR/data/mmlu_data
    local job=${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}
    name=${EXPERIMENT_NAME:-${job:+$job-}$size-mmlu-$1}
    common=(
        --name "$name"
        --checkpoint_dir "$DATA_DIR/experiments"
        --precision "${PRECISION:-bf16}"
        --reader_model_type "${READER:-google/t5-$size-lm-adapt}"
        --retriever_model_path "${RETRIEVER:-facebook/contriever}"
        --model_path "${MODEL_PATH:-$DATA_DIR/models/atlas/$size}"
        --task multiple_choice
        --target_maxlength 16
        --text_maxlength 512
        --n_context 30 --retriever_n_context 30
        --per_gpu_batch_size 1
        --multiple_choice_train_permutations all
        --multiple_choice_eval_permutations cyclic
        --write_results
        --index_mode flat
    )
    if [[ -n ${PASSAGES:-} ]]; then
        # shellcheck disable=SC2206  # several files
        common+=(--passages $PASSAGES)
    else
        common+=(--load_index_path "${INDEX_PATH:-$DATA_DIR/indices/atlas/wiki/$size}")
    fi
}

# What the three experiments that train have in common: `train`.
train_flags() {
    train=(
        --shuffle
        --train_retriever --gold_score_mode ppmean
        --query_side_retriever_training --refresh_index -1
        --temperature_gold 0.1 --temperature_score 0.1
        --use_gradient_checkpoint_reader --use_gradient_checkpoint_retriever
        --shard_optim --shard_grads
        --dropout 0.1
        --lr 5e-5 --lr_retriever 1e-5 --scheduler linear --weight_decay 0.01
        --log_freq 4
        --save_freq 10000000000
    )
}

# Run a script to its end; one that was warned of the time limit and has stopped has its job queued again.
run_experiment() { # SCRIPT FLAG ...
    local status=0
    launch "$@" || status=$?
    if ((status == 75)) && [[ -n ${SLURM_JOB_ID:-} && -z ${CHAIN_BENCHMARK:-} ]]; then # a chain's job does that itself
        scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
        sleep 60 # until Slurm ends this run
    fi
    return "$status"
}
