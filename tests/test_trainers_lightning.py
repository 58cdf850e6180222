import sys
from types import SimpleNamespace

import pytest
from test_trainers_huggingface import mixer_of
from trainer_runs import BATCH

import mixcore

torch = pytest.importorskip("torch")
pl = pytest.importorskip("lightning.pytorch")


class Module(pl.LightningModule):
    """Returns what it is told to."""

    def __init__(self, answer=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.answer = answer

    def training_step(self, batch, batch_idx):
        loss = self.layer(torch.ones(1, 1)).sum()
        domains = batch["domain"]
        answer = {"loss_sums": domains.float(), "tokens": torch.ones_like(domains)}
        return {"loss": loss, **(answer if self.answer is None else self.answer)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(mixer, micro=4, callback=None, data=None, module=None, ckpt_path=None, **options):
    from mixcore.trainers.lightning import MixCallback, MixDataModule

    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 6,
        "accumulate_grad_batches": 4,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    callbacks = [MixCallback(mixer), *options.pop("callbacks", [])]
    trainer = pl.Trainer(callbacks=callbacks, **(settings | options))
    name = "datamodule" if data is None else "train_dataloaders"
    data = MixDataModule(mixer, micro) if data is None else data
    trainer.fit(module or Module(), ckpt_path=ckpt_path, **{name: data})
    return trainer


def test_a_run():
    mixer = mixer_of()
    trainer = fit(mixer)
    assert trainer.global_step == 6
    assert mixer.position == 6 * BATCH
    assert mixer.ledger.num_decisions == 4


def test_a_step_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size is 16 at position 0, .* step of the trainer has 8 samples"
    ):
        fit(mixer_of(), accumulate_grad_batches=2)


def test_another_loader_is_refused():
    other = torch.utils.data.DataLoader([1, 2, 3])
    with pytest.raises(
        ValueError, match="the Trainer reads from BatchSampler, not from this mixer"
    ):
        fit(mixer_of(), data=other)


def test_losses_that_are_missing_are_named():
    module = Module({"tokens": 3})
    with pytest.raises(
        ValueError, match=r"with loss, loss_sums and tokens, got \['loss', 'tokens'\]"
    ):
        fit(mixer_of(), module=module)


def test_an_accumulation_that_changes_in_the_run_is_refused():
    class Change(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 7:
                trainer.accumulate_grad_batches = 2

    mixer = mixer_of()
    with pytest.raises(ValueError, match="accumulate_grad_batches must stay 4, got 2"):
        fit(mixer, callbacks=[Change()])
    assert mixer.steps == 2


def test_epochs_of_some_batches_go_on_where_the_last_ended():
    mixer = mixer_of()
    trainer = fit(mixer, limit_train_batches=8, max_epochs=-1)
    assert trainer.current_epoch == 3
    assert mixer.position == 6 * BATCH


@pytest.mark.parametrize("every", [4, 6])
def test_resumed_from_between_micro_batches(every, tmp_path):
    """Saved after micro-batch 6 of steps of 4; then resumed with steps of 2 and of 8."""
    whole = mixer_of()
    fit(whole)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == every - 1:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    fit(mixer_of(), callbacks=[Save()])
    for micro, accumulation in ((4, 4), (8, 2), (2, 8)):
        mixer = mixer_of()
        trainer = fit(
            mixer, micro, ckpt_path=tmp_path / "saved.ckpt", accumulate_grad_batches=accumulation
        )
        assert trainer.global_step == 6
        assert mixer.position == 6 * BATCH
        assert mixer.ledger.digest == whole.ledger.digest


def test_a_checkpoint_loads_with_weights_only(tmp_path):
    trainer = fit(mixer_of())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert saved["callbacks"]["MixCallback"]["position"] == 6 * BATCH


def test_a_checkpoint_of_another_step_is_refused(tmp_path):
    trainer = fit(mixer_of())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    del saved["callbacks"]["MixCallback"]
    torch.save(saved, tmp_path / "saved.ckpt")
    with pytest.raises(
        mixcore.LedgerError, match="the Trainer is at step 6, the mixture at step 0"
    ):
        fit(mixer_of(), max_steps=9, ckpt_path=tmp_path / "saved.ckpt")


@pytest.mark.parametrize(
    ("sampler", "said", "message"),
    [
        (True, {"num_replicas": 4, "rank": 1}, "use_distributed_sampler must be False, got True"),
        (False, {"num_replicas": 2, "rank": 1}, "data-parallel over all 4 ranks .*, got object"),
        (False, None, "data-parallel over all 4 ranks .*, got object"),
    ],
)
def test_ranks_that_are_fed_otherwise_are_refused(sampler, said, message):
    from mixcore.trainers.lightning import MixDataModule

    data = MixDataModule(mixer_of(), 4)
    data.trainer = SimpleNamespace(
        world_size=4,
        strategy=object(),
        distributed_sampler_kwargs=said,
        _accelerator_connector=SimpleNamespace(use_distributed_sampler=sampler),
    )
    with pytest.raises(ValueError, match=message):
        data.setup("fit")
    assert not data.mixer.bound


def test_the_package_that_the_program_uses(monkeypatch):
    from mixcore.trainers.lightning import _package

    assert _package() is pl
    both = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "pytorch_lightning", both)
    assert _package() is pl
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)  # not installed
    assert _package() is both
    monkeypatch.delitem(sys.modules, "lightning.pytorch")  # installed, not imported
    assert _package() is both
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    with pytest.raises(ImportError, match=r"pip install 'mixcore\[lightning\]'"):
        _package()
