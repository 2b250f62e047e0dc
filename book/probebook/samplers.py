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


def record_text(chapter: Chapter, key: str, digits: str = ".2f") -> None:
    """Record as ``<key>_text`` a recorded number with its error and step bias, if they are known.

    Sentences and pages that name it need not know whether a short run knew its errors.

    Args:
        chapter: where ``key`` is, and ``<key>_mcse`` and ``<key>_step_bias`` may be.
        key: name of the number.
        digits: format of all three.
    """
    numbers = chapter.numbers
    error, bias = (numbers.get(f"{key}_{end}") for end in ("mcse", "step_bias"))
    text = f"{numbers[key]:{digits}} ± {'not known' if error is None else format(error, digits)}"
    if bias is not None:
        text += f" (step bias {bias:+{digits}})"
    chapter.record(**{f"{key}_text": text})


__all__ = ["estimate_cells", "record_text"]
