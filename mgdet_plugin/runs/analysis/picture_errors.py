"""Pictures on which most is wrong: which they are, and how they are drawn, truth beside detections."""
from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from mgdet_plugin.deploy.sheet import Box, draw_boxes, read_rgb
from mgdet_plugin.runs.analysis.analysis import Analysis
from mgdet_plugin.runs.analysis.error_kinds import RIGHT

SHOWN = 6  # pictures of a set
MOST_WRONG = 12  # wrong detections that are drawn on a picture, which more would hide
_SIDE = 380  # pixels of a drawn picture's longer side
_SPACE = 6  # pixels between two
_FEW = 12  # boxes up to which right ones are named, too
_GREEN, _RED, _GREY = (0, 130, 80), (214, 40, 40), (120, 120, 120)


class PictureErrors(NamedTuple):
    """What is right and wrong on a picture at the threshold: places of detections, and of objects nothing finds.

    Attributes:
        right: Detections that are right.
        wrong: Others.
        kinds: Of the wrong ones.
        missed: Objects.
    """
    right: np.ndarray
    wrong: np.ndarray
    kinds: list[str]
    missed: np.ndarray

    @property
    def total(self) -> int:
        """How much is wrong."""
        return len(self.wrong) + len(self.missed)


def picture_errors(one: Analysis, threshold: float | None = None) -> list[PictureErrors]:
    """What is right and wrong on each picture from a score on, by default that of the best F1."""
    matched, found = one.matched, []
    shown = (matched.scores >= (one.threshold if threshold is None else threshold)) & ~matched.skipped[0]
    starts = np.searchsorted(matched.image, np.arange(len(one.results) + 1))
    for index, result in enumerate(one.results):
        inside = np.arange(starts[index], starts[index + 1])
        inside = inside[shown[inside]]
        is_right = one.errors.kind[inside] == RIGHT
        missed = ~result.crowd
        missed[matched.target[0, inside[is_right]]] = False
        found.append(PictureErrors(matched.place[inside[is_right]], matched.place[inside[~is_right]],
                                   list(one.errors.kind[inside[~is_right]]), np.flatnonzero(missed)))
    return found


def worst_pictures(after: Sequence[PictureErrors], before: Sequence[PictureErrors] | None = None,
                   count: int = SHOWN) -> list[int]:
    """Places of the pictures on which most is wrong, or on which most has become wrong; none without an error."""
    wrong = np.array([each.total for each in after], int)
    grown = wrong - np.array([each.total for each in before], int) if before is not None else wrong
    order = np.lexsort((-wrong, -grown))
    return [int(place) for place in order if grown[place] > 0][:count]


def drawn_picture(analyses: Sequence[Analysis], errors: Sequence[PictureErrors], place: int) -> bytes:
    """A picture as JPEG: its truth, then what each of one or two weights finds on it.

    Right is green, wrong red; an object that the last of the weights miss is dashed.
    """
    result = analyses[-1].results[place]
    picture = read_rgb(result.path)
    scale = _SIDE / max(picture.size)
    panels = [draw_boxes(picture, _truth(analyses[-1], errors[-1], place), scale),
              *(draw_boxes(picture, _found(one, each, place), scale) for one, each in zip(analyses, errors))]
    width, height = panels[0].size
    sheet = Image.new('RGB', (len(panels) * (width + _SPACE) - _SPACE, height), 'white')
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index * (width + _SPACE), 0))
    stream = BytesIO()
    sheet.save(stream, 'JPEG', quality=85)
    return stream.getvalue()


def _truth(one: Analysis, errors: PictureErrors, place: int) -> list[Box]:
    result, missed = one.results[place], set(errors.missed.tolist())
    boxes = []
    for index, (box, label) in enumerate(zip(result.truth, result.truth_labels)):
        is_missed, name = index in missed, one.classes[label]
        text = name if is_missed or len(result.truth) <= _FEW else ''
        colour = _GREY if result.crowd[index] else _RED if is_missed else _GREEN
        boxes.append(Box(_corners(box), colour, text, is_missed))
    return boxes


def _found(one: Analysis, errors: PictureErrors, place: int) -> list[Box]:
    result = one.results[place]
    wrong = errors.wrong[np.argsort(-result.scores[errors.wrong], kind='stable')][:MOST_WRONG]
    few = len(errors.right) + len(wrong) <= _FEW
    return [Box(_corners(result.boxes[each]), colour, f'{one.classes[result.labels[each]]} {result.scores[each]:.2f}'
                if few or colour == _RED else '')
            for places, colour in ((errors.right, _GREEN), (wrong, _RED)) for each in places]


def _corners(box: np.ndarray) -> tuple[float, float, float, float]:
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height
