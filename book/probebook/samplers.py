"""One posterior by several samplers: what each of them says, and what the step did to it."""

import math

from probebook.chapter import Chapter
from probelib import Estimate


def estimate_cells(
    chapter: Chapter, key: str, title: str, found: Estimate, digits: str = ".2f"
) -> dict[str, str]:
    """Record an estimate with its errors, and give the two cells of a table that show them.

    Where no error is known, or no bias (draws that no chain made have none), it is not recorded.

    Args:
        chapter: where to, as ``key``, ``<key>_mcse`` and ``<key>_step_bias``.
        key: name of the number.
        title: head of its column; that of the bias is "step bias of <title>".
        found: the estimate.
        digits: format of all three.
    """
    chapter.record(**{key: found.value})
    error, bias = "not known", "–"
    if math.isfinite(found.mcse):
        chapter.record(**{f"{key}_mcse": found.mcse})
        error = f"{found.mcse:{digits}}"
    if math.isfinite(found.step_bias) and found.step_bias:
        chapter.record(**{f"{key}_step_bias": found.step_bias})
        bias = f"{found.step_bias:+{digits}}"
    return {title: f"{found.value:{digits}} ± {error}", f"step bias of {title}": bias}


__all__ = ["estimate_cells"]
