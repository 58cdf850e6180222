import json

import numpy as np
import pytest
from controlled import Hedge, domains_of, losses_of, make

import mixcore
from mixcore.resume import catch_up
from mixcore.trainers.mixer import Mixer

torch = pytest.importorskip("torch")

BATCH = 16
NUM = 4


class Words:
    def __len__(self):
        return 10_000

    def __getitem__(self, i):
        return {"words": np.array([i, i + 1])}


def ledger_of(**options):
    return mixcore.Ledger(domains_of(), [4, 3, 2, 1], batch_size=BATCH, seed=7, **options)


def mixer_of(ledger=None, method=True, bind=True, **options):
    """A mixer with micro-batches of 4, 4 a step, one rank, unless told otherwise."""
    ledger = ledger or ledger_of()
    binding = {k: options.pop(k) for k in ("rank", "world_size", "micro_batches") if k in options}
    if method is True:
        method = Hedge(ledger.domains)
        options = {"update_every": 2, "lag_steps": 2} | options
    mixer = Mixer(ledger, [Words()] * NUM, method, **options)
    if bind:
        mixer.bind(micro_batch_size=4, **({"micro_batches": 4} | binding))
    return mixer


def train(mixer, steps, more=0):
    """Optimizer steps, then `more` micro-batches of the next; the batches seen."""
    seen = []
    for batch in mixer.loader():
        if len(seen) == steps * mixer.micro_batches + more:
            return seen
        seen.append(batch)
        losses, tokens = losses_of(batch["position"].numpy(), batch["domain"].numpy())
        mixer.observe(batch, torch.from_numpy(losses), torch.from_numpy(tokens))
        if len(seen) % mixer.micro_batches == 0:
            mixer.step()
    raise AssertionError("the loader has an end")


# What it gives ------------------------------------------------------------------------------------


def test_the_loader_gives_the_ledgers_samples():
    mixer = mixer_of()
    seen = train(mixer, 6)
    assert mixer.position == 6 * BATCH
    assert mixer.steps == 6
    picks = mixcore.Sampler(mixer.ledger).picks(0, 6 * BATCH)
    for name in ("domain", "draw", "epoch", "sample"):
        assert torch.cat([b[name] for b in seen]).tolist() == getattr(picks, name).tolist()
    assert torch.cat([b["position"] for b in seen]).tolist() == list(range(6 * BATCH))
    assert torch.cat([b["words"] for b in seen])[:, 0].tolist() == picks.sample.tolist()
    assert mixer.ledger.num_decisions == 4


def test_it_decides_as_a_controller_by_hand():
    mixer = mixer_of()
    train(mixer, 9)
    ledger = ledger_of()
    controller = mixcore.Controller(ledger, Hedge(ledger.domains), 2, lag_steps=2)
    sampler = mixcore.Sampler(ledger)
    for step in range(9):
        positions = np.arange(step * BATCH, (step + 1) * BATCH)
        domains = sampler.at(positions).domain
        controller.observe(domains, *losses_of(positions, domains))
        controller.step((step + 1) * BATCH)
    assert mixer.ledger.to_bytes() == ledger.to_bytes()


def test_without_a_method_the_ledgers_own_plan_holds():
    schedule = [{"at": 0, "weights": [1, 0, 0, 0]}, {"at": 3 * BATCH, "weights": [0, 1, 1, 0]}]
    ledger = mixcore.Ledger(domains_of(), batch_size=BATCH, schedule={"points": schedule})
    mixer = mixer_of(ledger, method=None)
    seen = []
    for batch in mixer.loader():
        seen += batch["domain"].tolist()
        mixer.observe(batch)
        if len(seen) % BATCH == 0:
            mixer.step()
        if mixer.steps == 6:
            break
    assert set(seen[: 3 * BATCH]) == {0}
    assert set(seen[3 * BATCH :]) == {1, 2}
    state = mixer.state_dict()
    assert state["controller"] is None
    other = mixer_of(ledger, method=None)
    other.load_state_dict(state)
    assert other.position == 6 * BATCH


@pytest.mark.parametrize("views", [1, 2])
def test_two_views_are_one_run(views):
    """What two ranks are handed is the run; a framework that picks every second gets the same."""
    given = []
    for rank in range(2):
        mixer = mixer_of(method=None, rank=rank, world_size=2, micro_batches=2)
        sampler = mixer.loader(views=views).batch_sampler
        assert (sampler.batch_size, sampler.drop_last) == (4, True)
        handed = [keys for keys, _ in zip(sampler, range(6 * views), strict=False)]
        given += handed[rank::2] if views == 2 else handed
    positions = sorted(key.position for keys in given for key in keys)
    assert positions == list(range(48))


def test_another_ranks_stand_in_is_never_a_sample():
    mixer = mixer_of(method=None, rank=1, world_size=2, micro_batches=2)
    with pytest.raises(mixcore.MixcoreError, match="got 'a sample of another rank'"):
        next(iter(mixer.loader(views=2)))


def test_iterating_anew_goes_on_where_the_trainer_is():
    mixer = mixer_of()
    train(mixer, 2)  # the loader has read on
    assert next(iter(mixer.loader()))["position"].tolist() == [32, 33, 34, 35]
    batch = next(iter(mixer.loader()))
    mixer.observe(batch, [1.0] * 4, [1] * 4)
    with pytest.raises(mixcore.LedgerError, match="1 of 4 micro-batches have been observed"):
        next(iter(mixer.loader()))


def test_the_default_lag_covers_one_micro_batch_read_ahead():
    for workers, prefetch, micro, lag in ((0, 2, 1, 1), (2, 2, 1, 5), (2, 2, 4, 2), (3, 1, 2, 3)):
        mixer = mixer_of(bind=False, lag_steps=None)
        mixer.bind(
            micro_batch_size=BATCH // micro,
            micro_batches=micro,
            num_workers=workers,
            prefetch_factor=prefetch,
        )
        assert mixer.controller.lag_steps == lag
        assert lag * micro >= workers * prefetch + 1


def test_a_batch_size_that_changes_in_the_run():
    """Refused where it begins; resumed there with settings that fit."""
    mixer = mixer_of()
    mixer.ledger.append(3 * BATCH, batch_size=2 * BATCH)
    with pytest.raises(ValueError, match="batch_size is 32 at position 48, but a step"):
        train(mixer, 4)
    assert mixer.steps == 3
    second = mixer_of(bind=False)
    second.bind(micro_batch_size=32, max_steps=5)
    second.load_state_dict(mixer.state_dict())
    assert not second.at_end
    batches = list(second.loader())  # the steps left, by the batch sizes of the checkpoint
    assert [b["position"][0].item() for b in batches] == [48, 80]
    for batch in batches:
        second.observe(batch, torch.ones(32), torch.ones(32).long())
        second.step()
    assert (second.position, second.steps, second.at_end) == (7 * BATCH, 5, True)


# Saving -------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_the_uninterrupted_one():
    whole = mixer_of()
    train(whole, 15)
    first = mixer_of()
    train(first, 7)  # decided, and not yet in force
    state = json.loads(json.dumps(first.state_dict()))  # plain values
    assert state["position"] == 7 * BATCH
    second = mixer_of(micro_batches=4)
    second.load_state_dict(state)
    train(second, 8)
    assert second.ledger.to_bytes() == whole.ledger.to_bytes()
    assert second.controller.state_dict() == whole.controller.state_dict()


def test_a_state_between_micro_batches_is_that_of_the_last_step():
    mixer = mixer_of()
    train(mixer, 5)
    state = mixer.state_dict()
    between = mixer_of()
    train(between, 5, more=3)
    assert between.observed == 3
    assert between.state_dict() == state


def test_a_ledger_that_went_on_until_the_crash(tmp_path):
    whole = mixer_of()
    train(whole, 15)
    ledger = ledger_of()
    ledger.attach(tmp_path / "ledger.jsonl")
    mixer = mixer_of(ledger)
    train(mixer, 7)
    state = mixer.state_dict()
    train(mixer, 4)
    loaded = mixcore.Ledger.load(tmp_path / "ledger.jsonl")
    assert loaded.num_decisions == 6
    loaded.attach(tmp_path / "ledger.jsonl")
    second = mixer_of(loaded)
    second.load_state_dict(state)
    train(second, 8)
    wanted = mixcore.Sampler(whole.ledger).picks(0, 15 * BATCH)
    got = mixcore.Sampler(second.ledger).picks(0, 15 * BATCH)
    assert np.array_equal(wanted.domain, got.domain)
    assert mixcore.Ledger.load(tmp_path / "ledger.jsonl").digest == second.ledger.digest


def test_what_is_no_state_of_this_run_is_refused():
    first = mixer_of()
    train(first, 7)
    state = first.state_dict()
    foreign = mixcore.Ledger(domains_of(), [4, 3, 2, 1], batch_size=BATCH, seed=8)
    cases = [
        (3, ValueError, "state must have the format 'mixcore.mixer/1', got 3"),
        (state | {"format": "x"}, ValueError, "got 'x'"),
        ({"format": state["format"]}, ValueError, r"lacks \['controller', 'ledger', 'position'\]"),
        (state | {"position": "7"}, TypeError, r"state\['position'\] must be an integer"),
        (
            state | {"position": 7},
            ValueError,
            r"state\['position'\] must be the end of a batch, got 7",
        ),
        (state | {"ledger": 5}, TypeError, r"state\['ledger'\] must be a str, got 5"),
        (state | {"ledger": "x\n"}, mixcore.LedgerError, "no ledger of mixcore"),
        (
            state | {"ledger": foreign.to_bytes().decode()},
            mixcore.LedgerError,
            f"of another run: its ledger \\(digest {foreign.digest}\\) .* differ from line 1 on",
        ),
        (state | {"controller": None}, ValueError, "a run with no method, this mixer has a method"),
        (
            state | {"controller": state["controller"] | {"lag_steps": 9}},
            ValueError,
            "lag_steps=9, this controller 2",
        ),
    ]
    for wrong, error, message in cases:
        with pytest.raises(error, match=message):
            mixer_of().load_state_dict(wrong)
    with pytest.raises(mixcore.LedgerError, match="this mixer has no trainer yet"):
        mixer_of(bind=False).load_state_dict(state)


def test_a_state_that_comes_too_late_is_refused():
    first = mixer_of()
    train(first, 9)
    state = first.state_dict()
    late = mixer_of()
    next(iter(late.loader()))
    late.ledger.mark_fetched(20 * BATCH)
    before = late.ledger.to_bytes()
    with pytest.raises(mixcore.LedgerError, match="load the checkpoint before the loader is"):
        late.load_state_dict(state)
    assert late.ledger.to_bytes() == before


def test_catch_up_adds_what_lacks_and_nothing_else():
    saved = make(update_every=5).ledger
    for at in (320, 640, 960):
        saved.append(at, [1, 1, 1, at])
    mine = make(update_every=5).ledger
    mine.append(320, [1, 1, 1, 320])
    catch_up(mine, saved)
    assert mine.to_bytes() == saved.to_bytes()
    mine.append(1280, [1, 0, 0, 0])
    catch_up(mine, saved)
    assert mine.num_decisions == 5
    other = make(update_every=5).ledger
    other.append(640, [1, 1, 1, 1])
    with pytest.raises(mixcore.LedgerError, match="differ from line 3 on"):
        catch_up(other, saved)
    assert other.num_decisions == 2


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ledger": 3}, TypeError, "ledger must be a mixcore.Ledger, got 3"),
        ({"method": "odn"}, ValueError, "odn"),
        ({"num_workers": 2}, TypeError, r"controller_options must be among .*'num_workers'"),
        ({"method": None, "lag_steps": 2}, ValueError, "method must be given with"),
        ({"datasets": {"d0": []}}, ValueError, "missing"),
    ],
)
def test_bad_arguments(options, error, message):
    ledger = options.pop("ledger", None) or ledger_of()
    datasets = options.pop("datasets", [Words()] * NUM)
    method = options.pop("method", Hedge(domains_of()))
    with pytest.raises(error, match=message) as caught:
        Mixer(ledger, datasets, method, **options)
    assert isinstance(caught.value, mixcore.MixcoreError)


def test_a_step_of_another_size_is_refused():
    mixer = mixer_of(bind=False)
    with pytest.raises(ValueError, match="micro_batches must be in"):
        mixer.bind(micro_batch_size=4, micro_batches=0)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 1\], got 2"):
        mixer.bind(micro_batch_size=4, rank=2, world_size=2)
    assert not mixer.bound
    mixer.bind(micro_batch_size=4, micro_batches=2)
    with pytest.raises(mixcore.LedgerError, match="drives a trainer already"):
        mixer.bind(micro_batch_size=4, micro_batches=4)
    with pytest.raises(ValueError, match=r"is 16 at position 0, but a step .* 8 samples"):
        next(iter(mixer.loader()))


def test_samples_that_are_not_due_are_refused():
    mixer = mixer_of()
    batches = iter(mixer.loader())
    first, second = next(batches), next(batches)
    losses = [1.0] * 4, [1] * 4
    with pytest.raises(mixcore.LedgerError, match="positions 0 to 3 are, got 4 to 7"):
        mixer.observe(second, *losses)  # skipped
    mixer.observe(first, *losses)
    with pytest.raises(mixcore.LedgerError, match="positions 4 to 7 are, got 0 to 3"):
        mixer.observe(first, *losses)  # repeated
    with pytest.raises(mixcore.LedgerError, match="must have 4 samples, got 2"):
        mixer.observe({k: v[:2] for k, v in second.items()}, *losses)  # cut up
    with pytest.raises(ValueError, match="loss_sums and tokens must be given to method 'hedge'"):
        mixer.observe(second)
    with pytest.raises(TypeError, match=r"must have position and domain, got \['words'\]"):
        mixer.observe({"words": 1}, *losses)
    with pytest.raises(mixcore.LedgerError, match="has 4 micro-batches, but 1 have been observed"):
        mixer.step()
    for batch in (second, next(batches), next(batches)):
        mixer.observe(batch, *losses)
    with pytest.raises(mixcore.LedgerError, match="step must be called after 4 micro-batches"):
        mixer.observe(next(batches), *losses)
    assert mixer.step() is None
    assert mixer.position == BATCH


def test_positions_on_a_device_are_looked_at_later():
    mixer = mixer_of()
    mixer._unchecked = [(torch.arange(4), 0), (torch.arange(8, 12), 4)]
    with pytest.raises(mixcore.LedgerError, match="positions 4 to 7 are, got 8 to 11"):
        mixer.state_dict()


def test_what_would_change_what_is_read_is_refused():
    mixer = mixer_of()
    for name in ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "dataset"):
        with pytest.raises(ValueError, match=f"{name} must not be given"):
            mixer.loader(**{name: None})
    with pytest.raises(ValueError, match="in_order must be True, got False"):
        mixer.loader(in_order=False)
    with pytest.raises(TypeError, match=r"collate_fn must return a mapping, got \[1\]"):
        next(iter(mixer.loader(collate_fn=lambda samples: [1])))
