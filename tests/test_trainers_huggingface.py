import json
import subprocess
import sys

import numpy as np
import pytest
from controlled import Hedge
from trainer_runs import BATCH, LENGTH, NUM, SIZE, VOCABULARY, Corpus

import mixcore
from mixcore.trainers.mixer import Mixer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _alone():
    """Accelerate keeps one state a process; other tests must not see this one's."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Tokens(Corpus):
    """A dataset that gives an array and nothing else."""

    def __getitem__(self, i):
        return super().__getitem__(i)["input_ids"]


def mixer_of(corpus=Corpus, method=True):
    domains = [mixcore.Domain(f"d{i}", SIZE) for i in range(NUM)]
    ledger = mixcore.Ledger(domains, [4, 3, 2, 1], batch_size=BATCH, seed=7)
    options = {"update_every": 2} if method else {}
    datasets = [corpus(d) for d in range(NUM)]
    return Mixer(ledger, datasets, Hedge(domains) if method else None, **options)


def trainer_of(tmp_path, mixer=None, cls=None, kwargs=None, dropout=0.1, **changes):
    from trainer_loops import tiny

    from mixcore.trainers.huggingface import MixTrainer

    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_steps": 3,
        "ignore_data_skip": True,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 2,
    }
    args = transformers.TrainingArguments(**(settings | changes))
    mixer = mixer or mixer_of()
    return (cls or MixTrainer)(model=tiny(dropout), args=args, mixer=mixer, **(kwargs or {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ignore_data_skip": False}, "ignore_data_skip must be True, got False"),
        ({"max_steps": -1}, "max_steps must be given, .* got -1"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size must be False, got True"),
        (
            {"accelerator_config": {"split_batches": True}},
            "the accelerator must have split_batches=False, got True",
        ),
        (
            {"accelerator_config": {"dispatch_batches": True}},
            "the accelerator must have dispatch_batches=False, got True",
        ),
        (
            {"gradient_accumulation_steps": 3},
            "is 16 at position 0, but a step of the trainer has 24 samples: micro",
        ),
        ({"resume_from": True}, "resume_from_checkpoint=True, but .* has no checkpoint with"),
        ({"train_dataset": [1]}, "train_dataset must not be given"),
    ],
)
def test_settings_that_cannot_be_exact_are_refused(changes, message, tmp_path):
    resume = changes.pop("resume_from", None)
    kwargs = {k: changes.pop(k) for k in ("train_dataset",) if k in changes}
    with pytest.raises(ValueError, match=message) as caught:
        trainer_of(tmp_path, kwargs=kwargs, **changes).train(resume_from_checkpoint=resume)
    assert isinstance(caught.value, mixcore.MixcoreError)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_lag_shorter_than_the_look_ahead_is_refused(tmp_path):
    mixer = mixer_of(method=False)
    mixer = Mixer(mixer.ledger, mixer.dataset, Hedge(mixer.ledger.domains), 2, lag_steps=0)
    with pytest.raises(
        mixcore.LedgerError, match=r"lag_steps=0 is too short.*needs lag_steps >= 1"
    ):
        trainer_of(tmp_path, mixer).train()


def test_checkpoints_without_the_mixture_are_passed_over(tmp_path):
    from mixcore.trainers.huggingface import last_checkpoint

    trainer = trainer_of(tmp_path)
    trainer.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")
    state = json.loads((tmp_path / "checkpoint-6" / "mixcore.json").read_text())
    assert state["position"] == 6 * BATCH
    whole = (tmp_path / "checkpoint-6" / "trainer_state.json").rename(tmp_path / "aside")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")  # a crash while saving
    whole.rename(tmp_path / "checkpoint-6" / "trainer_state.json")
    (tmp_path / "checkpoint-6" / "mixcore.json").unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert last_checkpoint(tmp_path / "nothing") is None
    with pytest.raises(ValueError, match=r"checkpoint-6 has no mixcore\.json"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    again = trainer_of(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6
    assert again.mixer.ledger.to_bytes() == trainer.mixer.ledger.to_bytes()
    epochs = [[x["epoch"] for x in t.state.log_history if "loss" in x] for t in (trainer, again)]
    assert epochs[0] == epochs[1] == pytest.approx([1 / 3, 2 / 3, 1])
    (tmp_path / "checkpoint-3" / "mixcore.json").write_text("{")
    with pytest.raises(ValueError, match=r"mixcore\.json is damaged"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_crash_while_saving_leaves_a_checkpoint_to_go_on_from(tmp_path, monkeypatch):
    """Even where the Trainer keeps one only: the old one goes when the new one is whole."""
    from mixcore.trainers.huggingface import last_checkpoint

    last = {}
    for name in ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state", "on_save"):
        trainer = trainer_of(tmp_path / name, save_total_limit=1)
        owner = trainer.callback_handler if name == "on_save" else trainer
        kept = getattr(owner, name)

        def crash(*args, trainer=trainer, kept=kept, **kwargs):
            if trainer.state.global_step == 6:
                raise KeyboardInterrupt
            return kept(*args, **kwargs)

        monkeypatch.setattr(owner, name, crash)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        last[name] = last_checkpoint(tmp_path / name).rpartition("-")[2]
    assert last.pop("on_save") == "6"
    assert set(last.values()) == {"3"}


def test_a_search_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trial must be None"):
        trainer_of(tmp_path).train(trial={"learning_rate": 1})


def test_a_state_of_another_step_is_refused(tmp_path):
    trainer_of(tmp_path).train()
    (tmp_path / "checkpoint-3" / "mixcore.json").replace(tmp_path / "checkpoint-6" / "mixcore.json")
    with pytest.raises(
        mixcore.LedgerError, match=r"Trainer is at step 6, the mixture at step 3 \(position 48\)"
    ):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_the_trainers_own_sums_stay(tmp_path):
    """It changes neither loss nor gradients: they are the Trainer's over the same data."""
    from trainer_loops import tiny

    trainer = trainer_of(tmp_path / "mixed", mixer_of(method=False), dropout=0, save_steps=99)
    trainer.train()
    picks = mixcore.Sampler(trainer.mixer.ledger).picks(0, 6 * BATCH)
    samples = [
        Corpus(d)[s] for d, s in zip(picks.domain.tolist(), picks.sample.tolist(), strict=True)
    ]
    plain = transformers.Trainer(model=tiny(0), args=trainer.args, train_dataset=samples)
    plain._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(samples)
    plain.train()
    pairs = zip(plain.model.parameters(), trainer.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    losses = [[x["loss"] for x in t.state.log_history if "loss" in x] for t in (plain, trainer)]
    assert losses[0] == losses[1]


def test_evaluation_and_arrays_and_label_smoothing(tmp_path):
    """Datasets of plain arrays; evaluation in the middle is none of the mixture's business."""
    mixer = mixer_of(Tokens)
    trainer = trainer_of(
        tmp_path,
        mixer,
        kwargs={"eval_dataset": [Corpus(9)[i] for i in range(5)]},
        eval_strategy="steps",
        eval_steps=2,
        label_smoothing_factor=0.1,
    )
    trainer.train()
    assert mixer.position == 6 * BATCH
    assert mixer.ledger.num_decisions == 4
    assert len([x for x in trainer.state.log_history if "eval_loss" in x]) == 3
    seen = mixer.method.seen
    assert all(s.tokens.sum() == 2 * BATCH * (LENGTH - 1) for s in seen)
    most = 2 * np.log(VOCABULARY)
    assert all(1 < s.loss.min() <= s.loss.max() < most for s in seen)


def test_a_model_without_logits_is_told_what_to_do(tmp_path):
    from mixcore.trainers.huggingface import MixTrainer

    class Fused(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss = model(**inputs).loss
            return (loss, {"loss": loss}) if return_outputs else loss

    class Mixed(MixTrainer, Fused):
        pass

    with pytest.raises(ValueError, match=r"need logits, which this .* override sample_losses"):
        trainer_of(tmp_path, cls=Mixed).train()


def test_two_runs_of_one_mixer_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, save_steps=99)
    trainer.train()
    with pytest.raises(mixcore.LedgerError, match="Trainer is at step 0, the mixture at step 6"):
        trainer.train()


def test_without_transformers_the_extra_is_named():
    code = "import sys; sys.modules['transformers'] = None\nimport mixcore.trainers.huggingface"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'mixcore[huggingface]'" in done.stderr
