# shellcheck shell=bash disable=SC2034  # VARIABLES is used by who sources it
# What the scripts of the MMLU experiments share: the variables that they read, and how the program behind them starts.

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

# In place of this process, so that Slurm's signals reach the program.
start_experiment() { # SETTING FLAG ...
    # shellcheck source=slurm/python.bash
    source "$(dirname -- "${BASH_SOURCE[0]}")/../../../slurm/python.bash"
    become "mmlu-$1.sh" atlas-experiment "$@"
}
