"""A small model, its data and its full gradients, for the tests of the gradient helper."""

import numpy as np
import torch
from torch import nn

# models this small are slower on many threads, far slower on a busy machine
torch.set_num_threads(1)

D = 3


def model(dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2), nn.LayerNorm(2))
    return net.to(dtype)


def batches(micro=2, samples=4, seed=1):
    """[domain][micro-batch] -> (x, y)."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return [[(rand(samples, 5) + i, rand(samples, 2)) for _ in range(micro)] for i in range(D)]


def loss_of(net, batch):
    x, y = batch
    return ((net(x.to(next(net.parameters()).dtype)) - y) ** 2).mean()


def full_gradient(net, batch, names=None):
    """The plain way: one backward, all parameters, flat."""
    chosen = [p for n, p in net.named_parameters() if names is None or n in names]
    grads = torch.autograd.grad(loss_of(net, batch), chosen)
    return np.concatenate([g.double().numpy().ravel() for g in grads])


def whole_batch(parts):
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def products(net, data, names=None):
    g = np.stack([full_gradient(net, whole_batch(parts), names) for parts in data])
    return g @ g.T
