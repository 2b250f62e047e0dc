"""The law of the *discretised* chain of one or two weights, without sampling (chapters 05, 06)."""

from collections.abc import Callable

import numpy as np
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import eigs


class ChainLaw:
    r"""The law of SGLD with the full gradient, on a grid, for one or two weights.

    One step takes w to :math:`m(w) + \sqrt\epsilon\, \xi`. Its operator on densities is a matrix
    on a grid with a spacing of 0.75 :math:`\sqrt\epsilon`, at which sums over the grid are
    integrals to within 1e-10. The potential must be even in each weight, so that the positive
    quadrant is enough.

    Args:
        gradient: maps weights, shape (d, k), to the gradient of U of the same shape.
        reach: largest weight on the grid.
        dimensions: d, 1 or 2.
        step_size: epsilon.

    Raises:
        ValueError: a dimension other than 1 or 2.
    """

    def __init__(
        self,
        gradient: Callable[[np.ndarray], np.ndarray],
        reach: float,
        dimensions: int,
        step_size: float,
    ):
        if dimensions not in (1, 2):
            raise ValueError(f"dimensions is {dimensions}; a grid is laid over 1 or 2 weights.")
        sigma = step_size**0.5
        spacing = 0.75 * sigma
        points = int(np.ceil(reach / spacing))
        axis = (np.arange(points) + 0.5) * spacing
        #: weights at the grid's nodes, shape (d, k)
        self.weights = np.stack(np.meshgrid(*[axis] * dimensions, indexing="ij")).reshape(
            dimensions, -1
        )
        self.step_size = step_size
        nodes = self.weights.shape[1]
        goal = self.weights - step_size / 2 * gradient(self.weights)
        # What is thrown off the grid by an unstable step is lost; `stationary` sees to it that
        # this is next to nothing.
        goal = np.clip(np.abs(goal), 0, 2 * reach)
        near = np.arange(-10, 11)  # 7.5 standard deviations: beyond lies 6e-14
        shares, index = [], []
        for g in goal:
            to = np.rint(g / spacing - 0.5).astype(int)[:, None] + near
            z = ((to + 0.5) * spacing - g[:, None]) / sigma
            share = np.exp(-0.5 * z**2) * spacing / sigma / np.sqrt(2 * np.pi)
            to = np.where(to < 0, -1 - to, to)
            shares.append(np.where(to < points, share, 0.0))
            index.append(np.minimum(to, points - 1))
        if dimensions == 1:
            data, rows = shares[0], index[0]
        else:
            data = shares[0][:, :, None] * shares[1][:, None, :]
            rows = index[0][:, :, None] * points + index[1][:, None, :]
        starts = np.arange(nodes + 1) * (data.size // nodes)
        self._operator = csc_matrix((data.ravel(), rows.ravel(), starts), shape=(nodes, nodes))
        self._operator.sum_duplicates()

    def stationary(self, start: np.ndarray) -> tuple[np.ndarray, float]:
        """The density at rest, and how fast the chain comes to it.

        Args:
            start: a guess of the density, such as exp(-U), shape (k,).

        Returns:
            Masses of the nodes, shape (k,), and the steps in which the slowest even function of
            the weights with the symmetries of ``start`` forgets all but 1/e of where it was.

        Raises:
            ArithmeticError: the chain leaves the grid: it has no stationary law there.
        """
        # Of the start's symmetries, such as an exchange of two weights; a smaller tolerance lets
        # rounding bring in vectors that lack them.
        values, vectors = eigs(
            self._operator, k=2, which="LM", v0=start, ncv=min(40, len(start)), tol=1e-10
        )
        first, second = np.argsort(-np.abs(values))
        lost = 1 - abs(values[first])
        if abs(lost) > 1e-6:
            raise ArithmeticError(
                f"step_size is {self.step_size:g}, with which the chain leaves the grid at a rate "
                f"of {lost:.2g} a step; lower it"
            )
        mass = np.abs(vectors[:, first].real)
        return mass / mass.sum(), float(-1 / np.log(abs(values[second])))

    def along(self, values: np.ndarray, steps: int) -> np.ndarray:
        """E[values] after each of the first steps of a chain that starts at 0, shape (steps,).

        Args:
            values: at the nodes, shape (k,).
            steps: how many.
        """
        # The first step leads from 0, where U is stationary, to N(0, epsilon).
        mass = np.exp(-0.5 * (self.weights**2).sum(0) / self.step_size)
        mass /= mass.sum()
        seen = np.empty(steps)
        for t in range(steps):
            seen[t] = mass @ values
            mass = self._operator @ mass
        return seen


__all__ = ["ChainLaw"]
