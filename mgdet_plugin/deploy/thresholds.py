"""The score from which a detection counts: one for all classes, or one for some. Imports nothing heavy."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mgdet_plugin.common.errors import UserError, is_number, require
from mgdet_plugin.common.resources import nearest

ScoreThr = float | Mapping[str | None, float] | None
"""A score of all classes; or class -> score, that of all others under None; what is not said is as the model has it."""


def class_thresholds(score_thr: ScoreThr, classes: Sequence[str], own: float) -> list[float]:
    """The score of each class above which a detection counts.

    Args:
        score_thr: What was asked for.
        classes: Names of the classes.
        own: The model's own score.

    Raises:
        UserError: A score is out of 0..1, or there is no class of a name.
    """
    given = score_thr if isinstance(score_thr, Mapping) else {}
    scores: list[Any] = list(given.values()) if isinstance(score_thr, Mapping) else [score_thr]
    for value in scores if score_thr is not None else ():
        require(is_number(value) and 0 <= value <= 1, 'the lowest score must be a number from 0 to 1', value)
    unknown = next((name for name in given if name is not None and name not in classes), None)
    if unknown is not None:
        raise UserError(f"the model knows no class '{unknown}'{nearest(str(unknown), classes)}; its classes are "
                        + ', '.join(classes))
    if isinstance(score_thr, (int, float)):
        return [float(score_thr)] * len(classes)
    return [float(given.get(name, given.get(None, own))) for name in classes]


def lower_scores(settings: Any, floor: float) -> None:
    """Let a model say what it is less sure of, too: lower each ``score_thr`` of its ``test_cfg`` to that, in place."""
    if not isinstance(settings, dict):
        return
    if is_number(settings.get('score_thr')):
        settings['score_thr'] = min(settings['score_thr'], floor)
    for each in settings.values():
        lower_scores(each, floor)


def scores_of(text: str) -> dict[str | None, float]:
    """Class -> its score, others under None, of a text: ``0.5``, ``person=0.6,dog=0.4`` or both in one.

    Raises:
        UserError: A score is no number, or a class has two.
    """
    found: dict[str | None, float] = {}
    for entry in text.split(','):
        name, _, value = entry.rpartition('=')
        key = name.strip() or None
        if key in found:
            raise UserError(f'--score-thr gives {key or "all other classes"} two scores, {found[key]} and {value}; '
                            'give one of them')
        try:
            found[key] = float(value)
        except ValueError:
            raise UserError(f'--score-thr takes 0.5, person=0.6,dog=0.4 or both, got {entry!r}') from None
    return found
