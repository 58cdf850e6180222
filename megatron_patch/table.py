"""The rows for Megatron-LM: megatron-core 0.16.1, 0.19.2 and later."""

from megatron_patch.rows import Table

MEGATRON = Table(
    name="Megatron-LM",
    package="megatron.core",
    groups={"dataset": "megatron.core", "training": "megatron.training"},
    rows=(),
)
