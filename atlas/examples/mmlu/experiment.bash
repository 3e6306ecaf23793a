# shellcheck shell=bash disable=SC2034  # the scripts that source this file use VARIABLES
# The common part of the scripts of the MMLU experiments: the variables that they read, and the start of the program.

VARIABLES='Variables, and their defaults:
  DATA_DIR           folder with data/mmlu_data, models and indices; results go to its folder experiments
  SIZE               size of the released checkpoint and index: base, large, xl, xxl      xl
  EXPERIMENT_NAME    name of the folder for the results                                   JOB-SIZE-mmlu-SETTING
  MODEL_PATH         folder of the checkpoint, or none                                    DATA_DIR/models/atlas/SIZE
  INDEX_PATH         folder of the index                                                  DATA_DIR/indices/atlas/wiki/SIZE
  PASSAGES           files of passages (JSON lines) to index instead of loading an index
  READER             the T5                                                               google/t5-SIZE-lm-adapt
  RETRIEVER          the encoder                                                          facebook/contriever
  PRECISION          fp32, fp16 or bf16                                                   bf16
  NUM_GPUS           number of processes per machine                                      the number of visible GPUs
  FLAG ...           flags for the Python script (see its --help); if a flag is given twice, the last one counts'

# The program replaces this process, so that Slurm's signals reach it.
start_experiment() { # SETTING FLAG ...
    # shellcheck source=slurm/python.bash
    source "$(dirname -- "${BASH_SOURCE[0]}")/../../../slurm/python.bash"
    become "mmlu-$1.sh" atlas-experiment "$@"
}
