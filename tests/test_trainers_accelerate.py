import pytest
from test_trainers_huggingface import _alone, mixer_of  # noqa: F401
from trainer_runs import BATCH

import mixcore

accelerate = pytest.importorskip("accelerate")


def loader_of(mixer=None, micro=8, accumulation=2, **options):
    from mixcore.trainers.accelerate import prepare_loader

    options = {k: accelerate.utils.DataLoaderConfiguration(**v) for k, v in options.items()}
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=accumulation, **options
    )
    mixer = mixer or mixer_of(method=False)
    return accelerator, mixer, prepare_loader(accelerator, mixer, micro)


@pytest.mark.parametrize("name", ["split_batches", "dispatch_batches", "use_stateful_dataloader"])
def test_settings_that_cannot_be_exact_are_refused(name):
    with pytest.raises(ValueError, match=f"must have {name}=False, got True"):
        loader_of(dataloader_config={name: True})


def test_parallelism_within_a_sample_is_refused():
    from mixcore.trainers.accelerate import check_accelerator

    class Config:
        tp_size, cp_size, sp_size = 1, 2, 1

    class Fake:
        parallelism_config = Config()

    with pytest.raises(ValueError, match="parallelism_config must have cp_size=1, got 2"):
        check_accelerator(Fake())


def test_a_step_of_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size is 16 at position 0, .* step of the trainer has 32 samples"
    ):
        next(iter(loader_of(accumulation=4)[2]))


def test_steps_are_the_accelerators():
    """`step` does something where the optimizer does, and only there."""
    import torch

    accelerator, mixer, loader = loader_of()
    model = torch.nn.Linear(1, 1)
    stepped = []
    for number, batch in enumerate(loader):
        with accelerator.accumulate(model):
            mixer.observe(batch)
            mixer.step()
        stepped.append(mixer.steps)
        if number == 5:
            break
    assert stepped == [0, 1, 1, 2, 2, 3]
    assert mixer.position == 3 * BATCH


def test_skipped_batches_are_found():
    """The habit of other loaders, after a state is loaded, would lose what is skipped."""
    accelerator, mixer, loader = loader_of()
    batch = next(iter(accelerator.skip_first_batches(loader, 3)))
    with pytest.raises(mixcore.LedgerError, match="positions 0 to 7 are, got 24 to 31"):
        mixer.observe(batch)


def test_the_state_goes_with_save_state(tmp_path):
    accelerator, mixer, loader = loader_of()
    for batch in loader:
        with accelerator.accumulate():
            mixer.observe(batch)
            mixer.step()
        if mixer.steps == 3:
            break
    accelerator.save_state(str(tmp_path))
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()
    accelerator, mixer, loader = loader_of(micro=4, accumulation=4)
    accelerator.load_state(str(tmp_path))
    assert mixer.position == 3 * BATCH
    assert next(iter(loader))["position"].tolist() == [48, 49, 50, 51]
    assert accelerator.step == 0  # counts micro-batches, of which a step now has others
