"""Megatron-DeepSpeed in small: its modules, names and signatures, and the rules of its blend.

Written for these tests; what it computes with numpy the real one has in helpers.cpp.
"""

GLOBALS = """
    _ARGS = None
    def set_args(args):
        global _ARGS
        _ARGS = args
    def get_args():
        return _ARGS
    def get_num_microbatches():
        return _ARGS.global_batch_size // _ARGS.micro_batch_size // _ARGS.data_parallel_size
    def get_tensorboard_writer():
        return getattr(_ARGS, 'writer', None)
    def get_wandb_writer():
        return None
"""
ARGUMENTS = """
    import argparse
    def parse_args(extra_args_provider=None, ignore_unknown_args=False):
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument('--deepspeed', action='store_true')
        parser.add_argument('--dataloader-type', default=None)
        parser.add_argument('--data-efficiency-curriculum-learning', action='store_true')
        parser.add_argument('--train-data-exact-num-epochs', type=int, default=None)
        if extra_args_provider is not None:
            parser = extra_args_provider(parser)
        return parser.parse_args()
    def validate_args(args, defaults={}):
        if args.dataloader_type is None:
            args.dataloader_type = 'single'
        return args
"""
PARALLEL = """
    place = {'tp': 0, 'sp': 0, 'dp': 0, 'dp_size': 1}
    def get_tensor_model_parallel_rank():
        return place['tp']
    def get_sequence_parallel_rank():
        return place['sp']
    def get_data_parallel_rank():
        return place['dp']
    def get_data_parallel_world_size():
        return place['dp_size']
"""
BLENDABLE = """
    import numpy as np
    import torch
    class BlendableDataset(torch.utils.data.Dataset):
        def __init__(self, datasets, weights, size, *, data_cache_path=None):
            weights = np.array(weights, dtype=np.float64)
            weights /= np.sum(weights)
            self.datasets, self.size = datasets, size
            drawn = np.zeros(len(weights), np.int64)
            self.index = []
            for i in range(size):
                d = int(np.argmax(weights * max(i, 1) - drawn))
                self.index.append((d, int(drawn[d])))
                drawn[d] += 1
        def __len__(self):
            return self.size
        def __getitem__(self, idx):
            d, sample = self.index[idx]
            return {'dataset_idx': np.uint8(d), **self.datasets[d][sample]}
"""
GPT_DATASET = """
    import math
    import numpy as np
    import torch
    from megatron.data.blendable_dataset import BlendableDataset
    from mixcore.indexed import IndexedReader
    built = []
    def ranges(splits_string, total):
        parts = [float(s) for s in splits_string.split(',')]
        edges = np.cumsum([0] + [int(round(p / sum(parts) * total)) for p in parts])
        edges[1:] -= edges[-1] - total
        return edges
    def get_indexed_dataset_(data_prefix, data_impl, skip_warmup):
        return Indexed(data_prefix)
    class Indexed:
        def __init__(self, prefix):
            self.reader = IndexedReader(prefix)
            self.sizes = np.asarray(self.reader.sequence_lengths, dtype=np.int32)
        def get(self, i):
            return np.asarray(self.reader[i])
    def build_train_valid_test_datasets(data_prefix, data_impl, splits_string,
                                        train_valid_test_num_samples, seq_length, seed,
                                        skip_warmup, train_data_prefix=None,
                                        valid_data_prefix=None, test_data_prefix=None,
                                        return_doc_ids=False, *, data_cache_path=None):
        weights = [float(w) for w in data_prefix[::2]]
        total = 0.0
        for w in weights:
            total += w
        weights = [w / total for w in weights]
        splits = []
        for k, name in enumerate(('train', 'valid', 'test')):
            sizes = [math.ceil(train_valid_test_num_samples[k] * w * 1.005) for w in weights]
            datasets = []
            for prefix, size in zip(data_prefix[1::2], sizes):
                indexed = get_indexed_dataset_(prefix, data_impl, skip_warmup)
                edges = ranges(splits_string, len(indexed.sizes))
                if edges[k + 1] > edges[k]:
                    documents = np.arange(edges[k], edges[k + 1], dtype=np.int32)
                    made = GPTDataset(name, prefix, documents, indexed, splits_string, size,
                                      seq_length, seed)
                    if made:
                        datasets.append(made)
            splits.append(BlendableDataset(datasets, weights, sum(sizes)) if datasets else None)
        return tuple(splits)
    class GPTDataset(torch.utils.data.Dataset):
        def __init__(self, name, data_prefix, documents, indexed_dataset, splits_string,
                     num_samples, seq_length, seed, return_doc_ids=False, *,
                     data_cache_path=None):
            self.indexed = indexed_dataset
            self.length = seq_length
            arrays = _build_index_mappings(name, data_prefix, documents, indexed_dataset.sizes,
                                           splits_string, num_samples, seq_length, seed,
                                           data_cache_path=data_cache_path)
            self.doc_idx, self.sample_idx, self.shuffle_idx, self.desc, self.desc_hash = arrays
        def __len__(self):
            return self.sample_idx.shape[0] - 1
        def __getitem__(self, idx):
            first, offset = self.sample_idx[self.shuffle_idx[idx]]
            tokens = []
            while len(tokens) <= self.length:
                tokens.extend(self.indexed.get(self.doc_idx[first])[offset:])
                first, offset = first + 1, 0
            return {'text': np.array(tokens[:self.length + 1], dtype=np.int64)}
    def _build_index_mappings(name, data_prefix, documents, sizes, splits_string, num_samples,
                              seq_length, seed, *, data_cache_path):
        built.append((name, data_prefix, num_samples))
        tokens = int(np.sum(sizes[documents]))
        epochs = 1
        while (epochs * tokens - 1) // seq_length < num_samples:
            epochs += 1
        random = np.random.RandomState(seed)
        doc_idx = np.tile(documents, epochs)
        random.shuffle(doc_idx)
        ends = np.cumsum(sizes[doc_idx])
        samples = (epochs * tokens - 1) // seq_length
        at = np.arange(samples + 1) * seq_length
        document = np.searchsorted(ends, at, side='right')
        sample_idx = np.stack([document, at - (ends - sizes[doc_idx])[document]], axis=1)
        shuffle_idx = np.arange(samples)
        random.shuffle(shuffle_idx)
        return doc_idx, sample_idx, shuffle_idx, '', ''
"""
SAMPLERS = """
    import torch
    from megatron import get_args
    from megatron.core import mpu
    def build_pretraining_data_loader(dataset, consumed_samples):
        if dataset is None:
            return None
        sampler = MegatronPretrainingSampler(
            total_samples=len(dataset), consumed_samples=consumed_samples,
            micro_batch_size=get_args().micro_batch_size,
            data_parallel_rank=mpu.get_data_parallel_rank(),
            data_parallel_size=mpu.get_data_parallel_world_size())
        return torch.utils.data.DataLoader(dataset, batch_sampler=sampler,
                                           num_workers=get_args().num_workers)
    class MegatronPretrainingSampler:
        def __init__(self, total_samples, consumed_samples, micro_batch_size,
                     data_parallel_rank, data_parallel_size, drop_last=True):
            self.total, self.at = total_samples, consumed_samples
            self.size = micro_batch_size
            self.rank, self.world = data_parallel_rank, data_parallel_size
        def __iter__(self):
            step = self.size * self.world
            for at in range(self.at, self.total - step + 1, step):
                yield list(range(at + self.rank * self.size, at + (self.rank + 1) * self.size))
"""
CROSS_ENTROPY = """
    def vocab_parallel_cross_entropy(vocab_parallel_logits, target, label_smoothing=0.0):
        return vocab_parallel_logits + 0.0 * target
"""
GPT_MODEL = """
    from megatron.core import tensor_parallel
    def CrossEntropy(output, labels):
        labels, mask = labels
        losses = tensor_parallel.vocab_parallel_cross_entropy(output, labels.transpose(0, 1))
        losses = losses.transpose(0, 1)
        return (losses * mask).sum() / mask.sum()
"""
TRAINING = """
    import functools
    from megatron import get_args, get_num_microbatches
    from megatron.core import mpu
    from megatron.data.data_samplers import build_pretraining_data_loader
    from megatron.model import gpt_model
    def build_train_valid_test_data_loaders(build_train_valid_test_datasets_provider):
        args = get_args()
        train, valid, test = build_train_valid_test_datasets_provider(
            [args.train_iters * args.global_batch_size, args.global_batch_size, 0])
        return (build_pretraining_data_loader(train, args.consumed_train_samples),
                build_pretraining_data_loader(valid, 0), None)
    def train_step(forward_step_func, data_iterator, model, optimizer, opt_param_scheduler, config):
        args = get_args()
        losses = []
        for _ in range(get_num_microbatches()):
            if args.ds_pipeline_enabled:  # the pipeline engine knows no forward_step_func
                output, labels, mask = model(next(data_iterator))
                losses.append(gpt_model.CrossEntropy(output.transpose(0, 1), (labels, mask)))
            else:
                output, loss_func = forward_step_func(data_iterator, model)
                losses.append(loss_func(output))
        return {'lm loss': sum(losses) / len(losses)}, 0, None, None
"""
ENGINE = """
    class DeepSpeedEngine:
        def save_checkpoint(self, save_dir, tag=None, client_state={}, save_latest=True,
                            exclude_frozen_parameters=False):
            self.saved = dict(client_state)
            return True
        def load_checkpoint(self, load_dir, tag=None, load_module_strict=True,
                            load_optimizer_states=True, load_lr_scheduler_states=True,
                            load_module_only=False, custom_load_fn=None):
            return load_dir, dict(self.saved)
"""
MODULES = {
    "megatron/__init__.py": "from megatron.global_vars import *\n",
    "megatron/global_vars.py": GLOBALS,
    "megatron/arguments.py": ARGUMENTS,
    "megatron/initialize.py": "from megatron.arguments import parse_args, validate_args\n",
    "megatron/core/__init__.py": "from megatron.core import parallel_state as mpu\n",
    "megatron/core/parallel_state.py": PARALLEL,
    "megatron/core/tensor_parallel/__init__.py": (
        "from .cross_entropy import vocab_parallel_cross_entropy\n"
    ),
    "megatron/core/tensor_parallel/cross_entropy.py": CROSS_ENTROPY,
    "megatron/data/__init__.py": "",
    "megatron/data/blendable_dataset.py": BLENDABLE,
    "megatron/data/gpt_dataset.py": GPT_DATASET,
    "megatron/data/data_samplers.py": SAMPLERS,
    "megatron/data/biencoder_dataset_utils.py": (
        "from megatron.data.data_samplers import MegatronPretrainingSampler\n"
    ),
    "megatron/model/__init__.py": "",
    "megatron/model/gpt_model.py": GPT_MODEL,
    "megatron/training.py": TRAINING,
    "deepspeed/__init__.py": "__version__ = '0.19.6'\n",
    "deepspeed/runtime/__init__.py": "",
    "deepspeed/runtime/engine.py": ENGINE,
}
