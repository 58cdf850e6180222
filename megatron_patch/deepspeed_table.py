"""The rows for Megatron-DeepSpeed (deepspeedai), tried on its commit 4efb479.

Its package is called `megatron` too, but `megatron.training` is one module there and the datasets
are those of `megatron.data`. What is below them (requests, ledgers, loaders, decisions) is shared.
"""

from megatron_patch.rows import Row, Table
from megatron_patch.table import wrapper

DATA = "megatron.data"
ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"

ROWS = (
    Row(
        "megatron.arguments:parse_args",
        wrapper("deepspeed_training:wrap_parse_args"),
        parameters=("extra_args_provider", "ignore_unknown_args"),
        reason="the --mix flags",
        group="training",
    ),
    Row(
        "megatron.arguments:validate_args",
        wrapper("deepspeed_training:wrap_validate_args"),
        parameters=("args",),
        reason="flags that contradict a live mixture are refused at once",
        group="training",
    ),
    Row(
        f"{DATA}.gpt_dataset:build_train_valid_test_datasets",
        wrapper("deepspeed_data:wrap_build_datasets"),
        parameters=(
            "data_prefix",
            "data_impl",
            "splits_string",
            "train_valid_test_num_samples",
            "seq_length",
            "seed",
            "skip_warmup",
            "train_data_prefix",
            "return_doc_ids",
            "data_cache_path",
        ),
        reason="the train split is read through the ledger, in the place of BlendableDataset",
        group="training",
    ),
    Row(
        f"{DATA}.gpt_dataset:_build_index_mappings",
        wrapper("deepspeed_data:wrap_index_mappings"),
        parameters=("name", "documents", "sizes", "seq_length"),
        reason="one epoch, in memory, for order balanced and for what follows the pinned arrays",
        group="training",
    ),
    Row(
        f"{DATA}.data_samplers:build_pretraining_data_loader",
        wrapper("loader:wrap_data_loader"),
        parameters=("dataset", "consumed_samples"),
        reason="the train loader reads the ledger",
        group="training",
    ),
    Row(
        f"{DATA}.data_samplers:MegatronPretrainingSampler",
        wrapper("loader:wrap_sampler"),
        parameters=(
            "total_samples",
            "consumed_samples",
            "micro_batch_size",
            "data_parallel_rank",
            "data_parallel_size",
        ),
        reason="the train loader's batch sampler hands (domain, draw) to the workers",
        group="training",
        only_here=True,
        may_keep=(f"{DATA}.biencoder_dataset_utils",),
    ),
    Row(
        "megatron.training:build_train_valid_test_data_loaders",
        wrapper("deepspeed_training:wrap_data_loaders"),
        parameters=("build_train_valid_test_datasets_provider",),
        reason="the run is planned on rank 0 and handed to all",
        group="training",
    ),
    Row(
        "megatron.training:train_step",
        wrapper("deepspeed_training:wrap_train_step"),
        parameters=("forward_step_func", "data_iterator"),
        reason="losses by domain, and a decision where one is due",
        group="training",
    ),
    Row(
        "megatron.core.tensor_parallel:vocab_parallel_cross_entropy",
        wrapper("deepspeed_training:wrap_token_losses"),
        parameters=("vocab_parallel_logits", "target"),
        reason="the losses of single tokens, which the pipeline engine does not hand out",
        group="training",
    ),
    Row(
        "megatron.model.gpt_model:CrossEntropy",
        wrapper("deepspeed_training:wrap_pipeline_loss"),
        parameters=("output", "labels"),
        reason="losses by domain in a pipeline",
        group="training",
    ),
    Row(
        f"{ENGINE}.save_checkpoint",
        wrapper("deepspeed_training:wrap_engine_save"),
        parameters=("self", "save_dir", "client_state"),
        reason="the ledger and the method's state go into every checkpoint",
        group="training",
    ),
    Row(
        f"{ENGINE}.load_checkpoint",
        wrapper("deepspeed_training:wrap_engine_load"),
        parameters=("self", "load_dir"),
        reason="what a loaded checkpoint was saved with",
        group="training",
    ),
)

MEGATRON_DEEPSPEED = Table(
    name="Megatron-DeepSpeed",
    package="megatron.core",
    groups={"training": "megatron.data.gpt_dataset"},
    rows=ROWS,
)
