"""What is read of an engine and refused, on stand-ins: no DeepSpeed needed."""

import json
from argparse import ArgumentParser
from types import SimpleNamespace

import pytest
import torch.distributed as dist

import mixcore.trainers.deepspeed as mixed
from mixcore import Domain, Ledger, LedgerError, MixDataset
from mixcore.errors import ArgumentError
from mixcore.trainers._deepspeed_engine import check_engine

DATA = {"a": list(range(50)), "b": list(range(30))}
SECTION = {"domains": [{"name": "a", "weight": 0.6}, {"name": "b", "weight": 0.4}], "seed": 3}


@pytest.fixture(autouse=True, scope="module")
def _group():
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Engine:
    """As much of a DeepSpeedEngine as is asked for."""

    def __init__(self, micro=2, accumulate=2, **config):
        self.config = {"data_mixing": SECTION, **config}
        self.micro, self.accumulate = micro, accumulate
        self.global_steps = self.global_samples = 0
        self.data_parallel_group, self.mpu = None, None
        self.sequence_parallel_size, self.training_dataloader = 1, None
        self.module = SimpleNamespace(training=True)
        self.events = []
        self.monitor = SimpleNamespace(write_events=self.events.extend)
        self.saved = {}

    def train_micro_batch_size_per_gpu(self):
        return self.micro

    def gradient_accumulation_steps(self):
        return self.accumulate

    def train_batch_size(self):
        return self.micro * self.accumulate

    def set_train_batch_size(self, size):
        self.accumulate = size // self.micro

    def train(self):
        self.global_steps += 1
        self.global_samples += self.train_batch_size()

    def save_checkpoint(self, folder, tag=None, client_state=None):
        self.saved[tag] = client_state, self.global_steps, self.global_samples

    def load_checkpoint(self, folder, tag=None):
        if tag not in self.saved:
            return None, None
        state, self.global_steps, self.global_samples = self.saved[tag]
        return f"{folder}/{tag}", dict(state)


def args_of(*flags):
    return mixed.add_arguments(ArgumentParser()).parse_args(flags)


def run(engine, mixer, batches, steps):
    """Train, and return the positions and batch sizes seen."""
    positions, sizes = [], []
    for _ in range(steps):
        sizes.append(engine.train_batch_size())
        for _ in range(engine.accumulate):
            batch = next(batches)
            positions += batch["position"].tolist()
            mixer.observe(batch, batch["tokens"].double(), batch["tokens"] + 1)
            mixer.step()  # between micro-batches: nothing
        engine.train()
        mixer.step()
    return positions, sizes


def test_batch_sizes_are_read_and_changed_at_the_right_step():
    engine = Engine()
    loader, mixer = mixed.initialize(args_of(), engine, DATA)
    batches = iter(loader)
    first, sizes = run(engine, mixer, batches, 2)
    assert sizes == [4, 4]
    at = mixer.set_train_batch_size(12)
    assert at == 16
    more, sizes = run(engine, mixer, batches, 4)
    assert sizes == [4, 4, 12, 12]
    assert first + more == list(range(8 + 8 + 24))
    for size in (0, 3, 2.0, -4):
        with pytest.raises(ArgumentError, match=f"must be a multiple of 2 .*got {size}"):
            mixer.set_train_batch_size(size)


@pytest.mark.parametrize("order", ["balanced", "megatron"])
def test_a_schedule_outlives_a_change_of_the_batch_size(order):
    points = [
        {"at": 40, "weights": [0.1, 0.9]},
        {"at": 80, "weights": [0.5, 0.5], "batch_size": 8},
        {"at": 120, "weights": [0.9, 0.1]},
    ]
    engine = Engine(data_mixing={**SECTION, "schedule": points, "order": order})
    loader, mixer = mixed.initialize(args_of(), engine, DATA)
    batches = iter(loader)
    run(engine, mixer, batches, 1)
    assert mixer.set_train_batch_size(12) == 12
    first, sizes = run(engine, mixer, batches, 14)
    assert sizes == [4, 4] + [12] * 6 + [8] * 6
    assert first == list(range(4, 4 + sum(sizes)))
    weights = {at: mixer.ledger.weights_at(at)[0] for at in (12, 47, 48, 83, 84, 123, 124)}
    assert weights == pytest.approx(
        {12: 0.6, 47: 0.6, 48: 0.1, 83: 0.1, 84: 0.5, 123: 0.5, 124: 0.9}
    )


def test_a_method_goes_on_between_two_batch_sizes():
    method = {"name": "odm", "update_every": 1, "lag_steps": 1, "warmup_steps": 0}
    section = {**SECTION, "method": method, "schedule": [{"at": 100, "batch_size": 8}]}
    engine = Engine(data_mixing=section)
    loader, mixer = mixed.initialize(args_of(), engine, DATA)
    batches = iter(loader)
    first, _ = run(engine, mixer, batches, 3)
    assert mixer.set_train_batch_size(12) == 20
    made = mixer.ledger.num_decisions
    more, sizes = run(engine, mixer, batches, 12)
    assert sizes == [4, 4] + [12] * 7 + [8] * 3
    assert first + more == list(range(12 + sum(sizes)))
    assert mixer.ledger.num_decisions >= made + 10


def test_the_engines_batch_size_changed_behind_our_back():
    engine = Engine()
    loader, mixer = mixed.initialize(args_of(), engine, DATA)
    batches = iter(loader)
    run(engine, mixer, batches, 1)
    engine.accumulate = 3
    with pytest.raises(LedgerError, match="step must be called after 2 micro-batches"):
        run(engine, mixer, batches, 1)
    engine = Engine()
    loader, mixer = mixed.initialize(args_of(), engine, DATA)
    batches = iter(loader)
    for _ in range(2):
        batch = next(batches)
        mixer.observe(batch)
    engine.global_steps, engine.global_samples = 1, 6
    with pytest.raises(LedgerError, match=r"trained on 6 samples .* position 4: .*set_train_batch"):
        mixer.step()


def test_a_missed_step():
    engine = Engine()
    _, mixer = mixed.initialize(args_of(), engine, DATA)
    engine.global_steps = 2
    with pytest.raises(LedgerError, match="engine is at step 2, the last one seen is 0"):
        mixer.step()


def test_checkpoints_go_through_client_state():
    method = {"name": "odm", "update_every": 2, "lag_steps": 2, "warmup_steps": 0}
    engine = Engine(data_mixing={**SECTION, "method": method})
    loader, mixer = mixed.initialize(args_of(), engine, DATA)
    run(engine, mixer, iter(loader), 5)
    mixer.save_checkpoint("folder", "t", client_state={"mine": 1})
    state = engine.saved["t"][0]
    assert set(state) == {"mine", "mixcore"}

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, str, bool)

    assert plain(state)
    other = Engine(data_mixing={**SECTION, "method": method})
    other.saved = engine.saved
    loader, again = mixed.initialize(args_of(), other, DATA)
    path, rest = again.load_checkpoint("folder", "t")
    assert (path, rest) == ("folder/t", {"mine": 1})
    assert again.position == 20
    assert again.ledger.digest == mixer.ledger.digest
    assert again.load_checkpoint("folder", "none") == (None, None)
    kinds = {name.split("/")[1] for name, _, _ in engine.events}
    assert kinds == {"weight", "share", "epoch", "loss"}

    other.saved = {"t": (state, 5, 24)}
    with pytest.raises(LedgerError, match=r"at position 20, but the engine has trained on 24"):
        again.load_checkpoint("folder", "t")
    other.saved = {"t": ({"mine": 1}, 5, 20)}
    with pytest.raises(LedgerError, match="has no 'mixcore' in its client_state"):
        again.load_checkpoint("folder", "t")


def test_flags_win_over_the_section(tmp_path):
    engine = Engine()
    ledger = tmp_path / "ledger.json"
    _, mixer = mixed.initialize(
        args_of("--mix-order", "random", "--mix-ledger", str(ledger)), engine, DATA
    )
    assert mixer.ledger.order == "random"
    with pytest.raises(ArgumentError, match=r"batch_size is 8, but the trainer has 4"):
        mixed.initialize(args_of(), Engine(data_mixing={**SECTION, "batch_size": 8}), DATA)
    with pytest.raises(ArgumentError, match=r"wieghts"):
        mixed.initialize(args_of(), Engine(data_mixing={**SECTION, "wieghts": []}), DATA)


def test_the_ledgers_file_over_a_crash(tmp_path):
    """What was decided after the checkpoint is kept aside; the file goes on from the checkpoint."""
    method = {"name": "odm", "update_every": 1, "lag_steps": 1, "warmup_steps": 0}
    config = {"data_mixing": {**SECTION, "method": method}}
    path = tmp_path / "ledger.json"
    flags = args_of("--mix-ledger", str(path))
    engine = Engine(**config)
    loader, mixer = mixed.initialize(flags, engine, DATA)
    batches = iter(loader)
    run(engine, mixer, batches, 3)
    mixer.save_checkpoint("folder", "t")
    saved = Ledger.load(path)
    assert saved.digest == mixer.ledger.digest
    run(engine, mixer, batches, 3)  # lost with the crash
    longer = path.read_bytes()
    other = Engine(**config)
    other.saved = engine.saved
    loader, again = mixed.initialize(flags, other, DATA)
    assert path.read_bytes() == longer  # nothing is touched before it is known what is gone on from
    again.load_checkpoint("folder", "t")
    assert Ledger.load(path).digest == saved.digest
    (aside,) = tmp_path.glob("ledger.json.2*")
    assert aside.read_bytes() == longer
    run(other, again, iter(loader), 2)
    assert Ledger.load(path).digest == again.ledger.digest


def test_a_ledger_of_ones_own():
    ledger = Ledger([Domain("a", 50), Domain("b", 30)], [1, 1], batch_size=4)
    engine = Engine()
    engine.config = {}
    dataset = MixDataset(ledger, DATA)
    _, mixer = mixed.initialize(None, engine, dataset, ledger=ledger)
    assert mixer.ledger is ledger
    with pytest.raises(ArgumentError, match="must be given together"):
        mixed.initialize(None, engine, dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"curriculum_learning": {"enabled": True}}}, "curriculum_learning"),
        (
            {"config": {"data_efficiency": {"enabled": True, "data_sampling": {"enabled": True}}}},
            "data_efficiency.data_sampling",
        ),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size must be 1, got 2"),
        ({"config": {"sequence_parallel_size": 2}}, "sequence_parallel_size must be 1, got 2"),
        ({"training_dataloader": object()}, "without training_data"),
    ],
)
def test_what_chooses_samples_by_itself_is_refused(change, message):
    engine = Engine()
    for name, value in change.items():
        setattr(engine, name, value)
    with pytest.raises(ArgumentError, match=message):
        check_engine(engine)


def test_something_else_than_an_engine():
    with pytest.raises(TypeError, match=r"engine must be from deepspeed\.initialize"):
        check_engine(object())


def test_prefetch_of_the_engines_loader():
    with pytest.raises(ArgumentError, match="prefetch_factor must be 2 with engine_io, got 4"):
        mixed.initialize(args_of(), Engine(), DATA, engine_io=True, prefetch_factor=4)


# Before there is an engine ----------------------------------------------------------------------


def test_settings_are_checked_before_the_engine(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"train_batch_size": 4, "data_mixing": SECTION}))
    args = args_of("--mix-method", "odm")
    args.deepspeed_config = str(file)
    settings = mixed.check(args, None, DATA)
    assert settings == mixed.check(args_of("--mix-method", "odm"), file, DATA)
    assert settings.config.batch_size == 4
    assert settings.config.method.name == "odm"
    assert [d.size for d in settings.config.domains] == [50, 30]


def test_a_batch_size_that_only_the_engine_will_know(tmp_path):
    auto = {"train_batch_size": "auto", "data_mixing": SECTION}
    assert mixed.check(None, auto, DATA).config.batch_size == 1
    (tmp_path / "mix.yaml").write_text("batch_size: 6\n")
    flags = args_of("--mix-config", str(tmp_path / "mix.yaml"))
    assert mixed.check(flags, auto, DATA).config.batch_size == 6
    assert mixed.check(None, {"data_mixing": {**SECTION, "batch_size": 5}}, DATA)


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        ([], {"data_mixing": {**SECTION, "oder": 1}}, "oder is not a known key .*'order'"),
        (
            ["--mix-method", "odmm"],
            {"data_mixing": SECTION},
            "--mix-method: .* no method is",
        ),
        ([], {"train_batch_size": 4, "data_mixing": {**SECTION, "batch_size": 8}}, "trainer has 4"),
        ([], {"sequence_parallel_size": 2, "data_mixing": SECTION}, "sequence_parallel_size must"),
        ([], {}, r"domains\['a'\].weight is missing"),
        ([], None, "config must be given: args has no deepspeed_config"),
    ],
)
def test_wrong_settings_before_the_engine(flags, config, message):
    with pytest.raises(ArgumentError, match=message):
        mixed.check(args_of(*flags), config, DATA)


def test_a_wrong_file_before_the_engine(tmp_path):
    for text, message in (("{", "is not JSON"), ("[1]", r"must hold a mapping, got \[1\]")):
        (tmp_path / "ds.json").write_text(text)
        with pytest.raises(ArgumentError, match=message):
            mixed.check(None, tmp_path / "ds.json", DATA)
    with pytest.raises(FileNotFoundError):
        mixed.check(None, tmp_path / "none.json", DATA)
