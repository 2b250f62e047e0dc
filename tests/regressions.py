"""Linear regression at its minimum, whose posterior is known in closed form."""

import numpy as np
import torch
from torch import nn

import probelib

N, D = 12, 5


class Exact:
    """Linear regression at its minimum: S, gains, kernel and LLC at any n_beta."""

    def __init__(self, gamma=30.0, n_beta=10.0, seed=0, d=D, n=N, offset=0.0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(n, d))
        y = self.x @ rng.normal(size=d) + rng.normal(size=n)
        w = np.linalg.lstsq(self.x, y, rcond=None)[0]
        self.residual, self.gamma = y - self.x @ w, gamma
        model = nn.Sequential(nn.Linear(d, 1, bias=False), nn.Flatten(0)).double()
        model[0].weight.data = torch.tensor(w)[None]
        self.data = torch.tensor(self.x), torch.tensor(y)
        self.posterior = probelib.LocalPosterior(
            model,
            lambda output, target: (
                probelib.squared_error(output[:, None], target[:, None]) + offset
            ),
            self.data,
            n_beta=n_beta,
            localization=gamma,
        )

    def at(self, n_beta):
        """Gains, K and LLC."""
        hessian = self.x.T @ self.x / len(self.x)
        s = np.linalg.inv(n_beta * hessian + self.gamma * np.eye(len(hessian)))
        g, r = self.x @ s @ self.x.T, self.residual
        return np.diag(g) / 2, np.outer(r, r) * g + g * g / 2, n_beta / 2 * np.trace(hessian @ s)
