"""Posteriors whose LLC is known: the problems that samplers are tried on (chapter 09).

Deep linear networks of any size, whose Eq. 1 a Gibbs sampler draws from without a step size; the
regular models and normal crossings of chapter 05; and small networks that HMC knows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

import probelib
from probebook import hmc_truth, known_llc, toys
from probebook.cache import cache_dir, write_atomically
from probebook.deep_linear import (
    DeepLinear,
    DeepLinearLaw,
    deep_linear_coefficient,
    deep_linear_law,
    deep_linear_posterior,
)

__all__ = ["FORMAT", "DeepLinearPlan", "KnownPlan", "Problem", "cached", "problem_of"]

FORMAT = 1  # of what is cached


@dataclass(frozen=True, eq=False)
class Problem:
    """A posterior whose LLC is known.

    Attributes:
        name: of the problem, one of a kind within its group.
        group: of problems that are ranked among each other.
        posterior: Eq. 1.
        eq1, eq1_se: the LLC of Eq. 1 at its n beta and gamma, and its standard error.
        limit: the learning coefficient, NaN where nobody knows.
        multiplicity: of the limit; 0 where nobody knows.
        depth: layers of a deep linear network; 0 for other models.
    """

    name: str
    group: str
    posterior: probelib.LocalPosterior
    eq1: float
    eq1_se: float = 0.0
    limit: float = math.nan
    multiplicity: int = 0
    depth: int = 0


def problem_of(
    name: str, group: str, posterior: probelib.LocalPosterior, llc: float, mcse: float
) -> Problem:
    """Any posterior as a problem, with an estimate that one believes in place of the truth.

    So come small nonlinear networks in, whose LLC long HMC chains tell.
    """
    return Problem(name, group, posterior, llc, mcse)


def _value_and_error(name: str, draws: int) -> dict[str, float]:
    found = hmc_truth.hmc_llc(name, draws)
    return {"llc": found.value, "mcse": found.mcse}


@dataclass(frozen=True)
class KnownPlan:
    """Regular models and normal crossings of chapter 05, and small networks that HMC knows.

    Attributes:
        regular: dimensions of linear regressions.
        monomials: exponents of normal crossings.
        networks: names of :data:`probebook.hmc_truth.NETWORKS`.
        n_beta, localization: of Eq. 1, but for the networks, which have their own.
        hmc_draws: of each of four chains.
    """

    regular: tuple[int, ...] = (8,)
    monomials: tuple[tuple[int, ...], ...] = ((1, 1), (2, 1))
    n_beta: float = 1000.0
    localization: float = 10.0
    networks: tuple[str, ...] = tuple(hmc_truth.NETWORKS)
    hmc_draws: int = 2500

    file: ClassVar[str] = "09_known.json"  # of the kept run

    def problems(self, device: str | torch.device = "cpu") -> list[Problem]:
        """The problems, on the CPU: they are too small for another device."""
        nb, gamma, problems = self.n_beta, self.localization, []
        for d in self.regular:
            toy = toys.linear_regression(4 * d, [1.0] * d, noise=0.5, seed=d)
            posterior = probelib.LocalPosterior(
                toy.model, probelib.squared_error, toy.data, n_beta=nb, localization=gamma
            )
            eq1 = toy.llc(nb, toy.covariance(nb, gamma))
            name = f"linear regression, d = {d}"
            problems.append(Problem(name, "regular", posterior, eq1, 0.0, d / 2, 1))
        for exponents in self.monomials:
            posterior = known_llc.local(known_llc.Monomial(exponents), nb, gamma)
            eq1 = known_llc.monomial_law(exponents, nb, gamma).llc
            limit, multiplicity = known_llc.monomial_coefficient(exponents)
            name = f"product of weights to the powers {', '.join(map(str, exponents))}"
            problems.append(
                Problem(name, "normal crossings", posterior, eq1, 0.0, limit, multiplicity)
            )
        return problems + [self._by_hmc(name) for name in self.networks]

    def first(self) -> KnownPlan:
        """The first of these problems alone."""
        return replace(self, regular=self.regular[:1], monomials=(), networks=())

    def _by_hmc(self, name: str) -> Problem:
        key = {"kind": "hmc_llc", "name": name, "draws": self.hmc_draws}
        known = asdict(hmc_truth.NETWORKS[name]) | {"make": ""}
        found = cached(key | known, lambda: _value_and_error(name, self.hmc_draws))
        posterior = hmc_truth.NETWORKS[name].make()
        return problem_of(name, "small networks", posterior, found["llc"], found["mcse"])


@dataclass(frozen=True)
class DeepLinearPlan:
    """Which deep linear networks of one size, and Eq. 1 for them.

    Attributes:
        weights: about so many in each network.
        networks: how many; their depths are 2 to 5 in turn.
        n_beta: of Eq. 1.
        localization_per_width: gamma over the largest width, so that the noise in a layer has a
            spectral norm of about 2 / sqrt(this), whatever the width.
        sweeps, burn_in, gibbs_chains: of the Gibbs sampler behind the LLC of Eq. 1.
        seed: of widths and ranks, and of the Gibbs sampler.
    """

    weights: float = 1e3
    networks: int = 4
    n_beta: float = 1000.0
    localization_per_width: float = 10.0
    sweeps: int = 300
    burn_in: int = 100
    gibbs_chains: int = 4
    seed: int = 0

    @property
    def group(self) -> str:
        """Name of the group: the size as a power of ten."""
        return f"10^{round(math.log10(self.weights))} weights"

    @property
    def file(self) -> str:
        """Name of the kept run of networks of this size."""
        return f"09_deep_linear_1e{round(math.log10(self.weights))}.json"

    def first(self) -> DeepLinearPlan:
        """The first of these networks alone, its truth by a few sweeps."""
        return replace(self, networks=1, sweeps=20)

    def shapes(self) -> list[tuple[tuple[int, ...], int]]:
        """Widths and rank of each network, drawn from the seed.

        No rank is 0: of a network that makes nothing the verdict says that it has learned nothing.
        """
        rng = np.random.default_rng([self.seed, round(self.weights)])
        found = []
        for k in range(self.networks):
            depth = 2 + k % 4
            typical = math.sqrt(self.weights / depth)
            widths = np.maximum(2, np.rint(typical * rng.uniform(0.6, 1.4, depth + 1)))
            widths = tuple(int(width) for width in widths)
            found.append((widths, int(rng.integers(1, max(1, min(widths) // 2) + 1))))
        return found

    def problems(self, device: str | torch.device = "cpu") -> list[Problem]:
        """The networks with their coefficient and the LLC of Eq. 1, which is cached."""
        problems = []
        for widths, rank in self.shapes():
            model = DeepLinear(widths, rank).to(device)
            localization = self.localization_per_width * max(widths)
            law = _cached_law(model, self, localization)
            limit, multiplicity = deep_linear_coefficient(widths, rank)
            problems.append(
                Problem(
                    f"{'–'.join(map(str, widths))}, rank {rank}",
                    self.group,
                    deep_linear_posterior(model, self.n_beta, localization),
                    law.llc,
                    law.llc_se,
                    limit,
                    multiplicity,
                    len(widths) - 1,
                )
            )
        return problems


def _cached_law(model: DeepLinear, plan: DeepLinearPlan, localization: float) -> DeepLinearLaw:
    settings = {
        "chains": plan.gibbs_chains,
        "sweeps": plan.sweeps,
        "burn_in": plan.burn_in,
        "seed": plan.seed,
    }
    key = {
        "kind": "deep_linear_law",
        "widths": model.widths,
        "rank": model.rank,
        "n_beta": plan.n_beta,
        "localization": localization,
        **settings,
    }
    return DeepLinearLaw(
        **cached(key, lambda: asdict(deep_linear_law(model, plan.n_beta, localization, **settings)))
    )


def cached(key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A flat dict of numbers and words, made once for each key.

    Args:
        key: what the numbers depend on; can be told as JSON.
        make: gives them.
    """
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, default=repr)
    path = cache_dir("sampler_benchmark") / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if path.is_file():
        return json.loads(path.read_text())
    found = make()
    write_atomically(path, json.dumps(found).encode())
    return found
