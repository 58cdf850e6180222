"""The rows for Megatron-LM: megatron-core 0.16.1, 0.19.2 and later.

The wrappers import torch, so they are imported when a row is put in place, not before.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from megatron_patch.rows import Row, Table


def _wrapper(name: str) -> Callable[[Any], Any]:
    """A wrapper of this package by `module:function`."""
    module, _, function = name.partition(":")

    def wrap(original: Any) -> Any:
        return getattr(import_module(f"megatron_patch.{module}"), function)(original)

    return wrap


DATASETS = "megatron.core.datasets"
TRAINING = "megatron.training.training"
SAMPLERS = "megatron.training.datasets.data_samplers"

ROWS = (
    Row(
        f"{DATASETS}.blended_megatron_dataset_builder:BlendedMegatronDatasetBuilder.build",
        _wrapper("blend:wrap_build"),
        parameters=("self",),
        reason="the train split is read through the ledger",
    ),
    Row(
        f"{DATASETS}.gpt_dataset:GPTDataset._build_document_sample_shuffle_indices",
        _wrapper("orders:wrap_build_indices"),
        parameters=("self",),
        reason="order balanced: one epoch, in memory, whatever the weights and the run's length",
    ),
    Row(
        "megatron.training.arguments:add_megatron_arguments",
        _wrapper("training:wrap_add_arguments"),
        parameters=("parser",),
        reason="the --mix flags",
        group="training",
    ),
    Row(
        "megatron.training.arguments:validate_args",
        _wrapper("training:wrap_validate_args"),
        parameters=("args",),
        reason="flags that contradict a live mixture are refused at once",
        group="training",
    ),
    Row(
        f"{TRAINING}:pretrain",
        _wrapper("training:wrap_pretrain"),
        parameters=("train_valid_test_dataset_provider",),
        reason="a run begins here, also after a restart within the process",
        group="training",
    ),
    Row(
        "megatron.training.checkpointing:check_checkpoint_args",
        _wrapper("training:wrap_check_checkpoint_args"),
        parameters=("checkpoint_args",),
        reason="what a loaded checkpoint was saved with",
        group="training",
    ),
    Row(
        "megatron.training.checkpointing:save_checkpoint",
        _wrapper("training:wrap_save_checkpoint"),
        parameters=("iteration", "model", "optimizer", "opt_param_scheduler"),
        reason="the ledger and the method's state go into every checkpoint",
        group="training",
    ),
    Row(
        f"{TRAINING}:build_train_valid_test_data_loaders",
        _wrapper("training:wrap_data_loaders"),
        parameters=("build_train_valid_test_datasets_provider",),
        reason="the run is planned on rank 0 and handed to all",
        group="training",
    ),
    Row(
        f"{SAMPLERS}:build_pretraining_data_loader",
        _wrapper("loader:wrap_data_loader"),
        parameters=("dataset", "consumed_samples"),
        reason="the train loader reads the ledger",
        group="training",
    ),
    Row(
        f"{SAMPLERS}:MegatronPretrainingSampler",
        _wrapper("loader:wrap_sampler"),
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
    ),
    Row(
        f"{TRAINING}:train_step",
        _wrapper("live:wrap_train_step"),
        parameters=("forward_step_func", "forward_backward_func"),
        reason="losses by domain, and a decision where one is due",
        group="training",
    ),
    Row(
        f"{TRAINING}:dummy_train_step",
        _wrapper("live:wrap_dummy_train_step"),
        parameters=("data_iterator",),
        reason="skipped iterations count too",
        group="training",
    ),
)

MEGATRON = Table(
    name="Megatron-LM",
    package="megatron.core",
    groups={"dataset": "megatron.core", "training": "megatron.training"},
    rows=ROWS,
)
