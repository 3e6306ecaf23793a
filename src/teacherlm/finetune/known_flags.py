"""How this trainer treats each of transformers' TrainingArguments and each flag of the reference's finetune.py.

A flag of TrainingArguments is in one of four groups. HARMLESS flags change nothing in a checkpoint. REFUSED flags do
not work correctly in this trainer. DERIVED flags are recorded in a different form. All other flags are recorded as they
are, so a flag that a newer transformers adds is recorded.
"""

HARMLESS = {
    # where output goes, and what is shown
    "output_dir", "run_name", "report_to", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "disable_tqdm", "log_level", "log_level_replica", "log_on_each_node",
    "logging_strategy", "logging_steps", "logging_first_step", "skip_memory_metrics", "debug",
    # which checkpoints are kept, and what they hold apart from the weights
    "save_strategy", "save_steps", "save_total_limit", "save_only_model",
    # how batches are loaded and memory is used: these change the speed, not the numbers
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "torch_empty_cache_steps", "gradient_checkpointing",
    "per_device_eval_batch_size",
    # how processes find and wait for one another
    "ddp_backend", "ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "local_rank",
    # read by the library's example scripts, not by its Trainer
    "do_train",
    # arguments.py always sets these
    "remove_unused_columns", "use_cpu",
}  # fmt: skip
"""Flags that change no number of a checkpoint. They are not recorded, so they may differ when a run is continued."""

DERIVED = {
    "per_device_train_batch_size", "gradient_accumulation_steps",  # effective_batch
    "fp16", "bf16",  # precision
    "deepspeed",  # see recorded.deepspeed_settings
    "num_train_epochs", "max_steps",  # see recorded.lengths
}  # fmt: skip

ORDER = "the order of the samples depends only on --seed; --shuffle false keeps the dataset's order"
NO_EVALUATION = "the scripts in evaluate/ score the checkpoints, and --dev_dataset gives the loss of each epoch"
BEST = "with --dev_dataset the link `best` points to the best checkpoint"
HUB = "checkpoints stay on this machine; `hf upload` sends one to the hub"
SHARDED = "weights are spread over GPUs by --deepspeed zero3"
UNTESTED = "it is not tested with packed batches and the chunked loss, which are already fused"

REFUSED = {
    "label_smoothing_factor": "the loss is the plain cross-entropy",
    "average_tokens_across_devices": "a step's loss is always the mean over all processes; see --loss_average",
    "logging_nan_inf_filter": "a loss that is not finite ends the training",
    "include_num_input_tokens_seen": "log.jsonl has tokens_per_second",
    "auto_find_batch_size": "it would change the effective batch; AUTO_BATCH=1 of finetune.sh keeps it",
    "dataloader_drop_last": "an epoch has every sample; its last step may have fewer samples than the others",
    "dataloader_in_order": ORDER,
    "data_seed": ORDER,
    "train_sampling_strategy": ORDER,
    "length_column_name": ORDER,
    "ignore_data_skip": "a continued run would train on other samples than an uninterrupted one",
    "resume_from_checkpoint": "the same command continues from the run's last checkpoint by itself",
    "restore_callback_states_from_checkpoint": "the same command continues from the run's last checkpoint by itself",
    "enable_jit_checkpoint": "SIGUSR1 and SIGTERM save a checkpoint already",
    "save_on_each_node": "all nodes share the run's folder",
    "use_liger_kernel": UNTESTED,
    "liger_kernel_config": UNTESTED,
    "torch_compile": UNTESTED,
    "torch_compile_backend": UNTESTED,
    "torch_compile_mode": UNTESTED,
    "optim_target_modules": "it belongs to optimizers that are not supported here",
    "accelerator_config": "how batches are spread over processes is fixed, so that each step has the same samples",
    "parallelism_config": SHARDED,
    "fsdp": SHARDED,
    "fsdp_config": SHARDED,
    "label_names": "the collators name what they make",
    "do_eval": NO_EVALUATION,
    "do_predict": NO_EVALUATION,
    "eval_strategy": NO_EVALUATION,
    "eval_steps": NO_EVALUATION,
    "eval_delay": NO_EVALUATION,
    "eval_on_start": NO_EVALUATION,
    "eval_accumulation_steps": NO_EVALUATION,
    "eval_do_concat_batches": NO_EVALUATION,
    "eval_use_gather_object": NO_EVALUATION,
    "batch_eval_metrics": NO_EVALUATION,
    "include_for_metrics": NO_EVALUATION,
    "prediction_loss_only": NO_EVALUATION,
    "bf16_full_eval": NO_EVALUATION,
    "fp16_full_eval": NO_EVALUATION,
    "load_best_model_at_end": BEST,
    "metric_for_best_model": BEST,
    "greater_is_better": BEST,
    "push_to_hub": HUB,
    "hub_model_id": HUB,
    "hub_strategy": HUB,
    "hub_token": HUB,
    "hub_private_repo": HUB,
    "hub_always_push": HUB,
    "hub_revision": HUB,
}
"""Maps each flag that does not work correctly in this trainer to the reason or the replacement. The default value of
the flag is accepted."""

FILES = "--dataset_name takes a datasets folder; data_prepare.py makes one"
LIBRARY = "use the versions in requirements/; leave it out"
FORMER = {
    # from the reference's finetune.py
    "max_target_length": (None, ""),  # the reference accepts it and does not use it
    "val_max_target_length": (None, ""),
    "overwrite_output_dir": (
        "false",
        "--restart renames the folder of another run and begins again; remove the folder to repeat the same run",
    ),
    "config_name": ("", "the configuration comes with the student, --model_name_or_path"),
    "tokenizer_name": ("", "the tokenizer comes with the student, --model_name_or_path"),
    "cache_dir": ("", "set HF_HOME to the folder of the hub's cache"),
    "use_fast_tokenizer": ("true", "every tokenizer is a fast one"),
    "model_revision": ("main", "write a models/NAME.yaml with `hub` and `revision`"),
    "trust_remote_code": ("false", "code from a model's folder is never run here; use a model that transformers has"),
    "use_auth_token": ("false", "set HF_TOKEN, or log in with `hf auth login`"),
    "encoder_decoder": ("false", "students are causal decoders"),
    "eval_dataset_name": ("", "use --dev_dataset"),
    "benchmark_dataset_name": ("", NO_EVALUATION),
    "save_benchmark_res": (None, ""),  # the reference does not use this one and the next two
    "num_classes": (None, ""),
    "num_valid_prompt": (None, ""),
    "dataset_config_name": ("", FILES),
    "train_file": ("", FILES),
    "validation_file": ("", "--dev_dataset takes a datasets folder"),
    "test_file": ("", NO_EVALUATION),
    "overwrite_cache": (None, ""),  # samples are never cached
    "preprocessing_num_workers": (None, ""),  # tokenization takes seconds
    "pad_to_max_length": ("false", "--packing false pads a batch to its longest sample"),
    "ignore_pad_token_for_loss": ("true", "padding never has a loss"),
    "max_eval_samples": ("", "choose the samples of --dev_dataset when the folder is made"),
    "max_predict_samples": ("", NO_EVALUATION),
    "num_beams": ("", NO_EVALUATION),
    "forced_bos_token": ("", "students are causal decoders"),
    "sortish_sampler": ("false", ORDER),
    "predict_with_generate": ("false", NO_EVALUATION),
    "generation_max_length": ("", NO_EVALUATION),
    "generation_num_beams": ("", NO_EVALUATION),
    "generation_config": ("", NO_EVALUATION),
    # from the library's example scripts
    "source_prefix": ("", "prompts come from the benchmark's YAML; data_prepare.py writes them into the dataset"),
    "text_column": ("", "--task_type names the field that is trained on"),
    "block_size": ("", "use --max_source_length; samples are never joined or split"),
    "streaming": ("false", FILES),
    # from older TrainingArguments
    "evaluation_strategy": ("no", NO_EVALUATION),
    "evaluate_during_training": ("false", NO_EVALUATION),
    "warmup_ratio": ("0", "use --warmup_steps; a value below 1 is a fraction of all steps"),
    "no_cuda": ("false", "use --use_cpu"),
    "adafactor": ("false", "use --optim adafactor"),
    "group_by_length": ("false", "packed batches have no padding; " + ORDER),
    "per_gpu_train_batch_size": ("", "use --per_device_train_batch_size"),
    "per_gpu_eval_batch_size": ("", "use --per_device_eval_batch_size"),
    "logging_dir": ("", "log.jsonl and the files of tensorboard are in the run's folder"),
    "save_safetensors": ("true", "weights are always saved as safetensors"),
    "half_precision_backend": ("auto", "torch's autocast is used; choose with --fp16 or --bf16"),
    "fp16_backend": ("auto", "torch's autocast is used; choose with --fp16 or --bf16"),
    "fp16_opt_level": ("O1", "torch's autocast is used; choose with --fp16 or --bf16"),
    "include_tokens_per_second": (None, ""),  # log.jsonl always has them
    "include_inputs_for_metrics": ("false", NO_EVALUATION),
    "past_index": ("-1", "students are causal decoders"),
    "sharded_ddp": ("", SHARDED),
    "torchdynamo": ("", UNTESTED),
    "use_ipex": ("false", LIBRARY),
    "use_mps_device": ("false", LIBRARY),
    "tpu_num_cores": ("", LIBRARY),
    "push_to_hub_model_id": ("", HUB),
    "push_to_hub_organization": ("", HUB),
    "push_to_hub_token": ("", HUB),
}  # fmt: skip
"""Maps each flag of the reference or of an older transformers to (the accepted value, what to use instead). The
accepted value asks for what this trainer does in any case; None accepts any value."""

HELP = {
    "optim": "the optimizer; those with 8bit, 32bit, lion, ademamix or bnb in their names need a GPU and bitsandbytes",
    "optim_args": "further arguments of the optimizer: NAME=VALUE,NAME=VALUE; one that changes nothing is refused",
    "lr_scheduler_type": "the schedule of the learning rate; --lr is a short form of this flag",
    "save_strategy": "when a checkpoint is written: after each epoch, or every --save_steps steps",
    "save_total_limit": "maximum number of checkpoints to keep; the oldest ones are removed, but never the best one "
    "(--dev_dataset)",
    "deepspeed": "a name in finetune/deepspeed (zero1, zero2, zero3, ...), the path of a JSON file, or none (default: "
    "what the student's models/NAME.yaml says, if there are several processes)",
    "report_to": "wandb, tensorboard, other loggers of transformers, all, or none",
    "use_cache": "accepted and without an effect: training never uses a cache of keys and values",
}
"""The help of flags whose own text in transformers names values that are refused here."""

SCHEDULES_WITH_LOSS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that need the loss of an evaluation at each step. They are refused."""

OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop",
    # from bitsandbytes, on a GPU
    "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "lion_8bit", "lion_32bit",
    "paged_lion_32bit", "paged_lion_8bit", "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
"""The supported optimizers. They use the gradients of a whole step, and a checkpoint keeps their states. The library's
other optimizers update layer by layer, change the weights when the model is saved, or need other hardware."""

FIXED_SCHEDULES = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Schedules whose learning rate at a step does not depend on the total number of steps."""
