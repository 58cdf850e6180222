import pytest

from mixcore.trainers.losses import sample_losses

torch = pytest.importorskip("torch")


def test_a_known_answer():
    """Two words, logits that give the label 1/2, and one that gives it e/(1 + e)."""
    logits = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [9.0, 9.0]], [[0.0, 0.0]] * 3])
    labels = torch.tensor([[1, 0, 0], [0, 1, -100]])
    sums, tokens = sample_losses(logits, labels)
    assert sums.tolist() == pytest.approx([0.693147 + 0.313262, 0.693147], abs=1e-5)
    assert tokens.tolist() == [2, 1]
    sums, tokens = sample_losses(logits, labels, shift=False)
    assert sums.tolist() == pytest.approx([0.693147 + 0.313262 + 0.693147, 2 * 0.693147], abs=1e-5)
    assert tokens.tolist() == [3, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_their_mean_is_the_models_loss(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 9, 17, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(17, (5, 9), generator=generator)
    labels[2, 4:] = -100
    labels[3, :] = -100
    sums, tokens = sample_losses(logits, labels)
    whole = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    )
    assert (sums.sum() / tokens.sum()).item() == pytest.approx(whole.item(), rel=1e-5)
    assert not sums.requires_grad
    assert sums.dtype == torch.float32
    assert (tokens[3], sums[3]) == (0, 0)
    alone = sample_losses(logits[1:2], labels[1:2])[0]
    assert torch.equal(alone[0], sums[1])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"labels \(2, 4\), got \(2, 3, 7\)"):
        sample_losses(torch.zeros(2, 3, 7), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels \(2,\), got \(2, 7\)"):
        sample_losses(torch.zeros(2, 7), torch.zeros(2, dtype=torch.long))
