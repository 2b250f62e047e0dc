"""Finding wrong labels (chapter 10): data with known wrong labels, and everything that finds them.

:mod:`~probebook.labels.tasks` has the data, :mod:`~probebook.labels.noise` the wrong labels,
:mod:`~probebook.labels.training` the networks and what is recorded while they learn,
:mod:`~probebook.labels.scores` and :mod:`~probebook.labels.probe` the scores, and
:mod:`~probebook.labels.study` runs them all over a grid.
"""
