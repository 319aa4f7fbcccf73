"""Mosaic and mixup as a step of an ordinary pipeline, with a probability that a plan can set."""
from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mmcv.transforms import BaseTransform, Compose
from mmdet.datasets.transforms import MixUp, Mosaic, RandomAffine
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import BaseBoxes

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.transforms.clip_boxes import clip_boxes

Sample = dict[str, Any]


class MixSource(Protocol):
    """Other images of the same dataset, loaded by the steps before a :class:`StagedMix`; never the image itself."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample | None: ...


def clip_to_image(results: Sample) -> Sample:
    """Clip the boxes to their own image and drop those without area, so that none reaches into a neighbour's part.

    Args:
        results: a sample with ``img`` (h, w, 3) and maybe ``gt_bboxes`` (G, 4) and what goes with them; stays as it is.

    Returns:
        A shallow copy with boxes of its own, without the ``instances`` of the file, which are in ``gt_bboxes`` and
        would be copied at each mix.
    """
    results = dict(results)
    results.pop('instances', None)
    if results.get('gt_bboxes') is None:
        return results
    if not isinstance(results['gt_bboxes'], BaseBoxes):
        raise UserError(f'StagedMix: gt_bboxes are {type(results["gt_bboxes"]).__name__}, not of a box type; '
                        "load them with dict(type='LoadAnnotations', with_bbox=True) and its default box_type='hbox'")
    clip_boxes(results, results['img'].shape[:2])
    return results


class _Partners:
    """What ``get_indexes`` of a mixing transform sees: each image loaded once, clipped, an empty one where it fails."""

    def __init__(self, source: MixSource) -> None:
        self.source = source
        self.loaded: dict[int, Sample | None] = {}

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Sample | None:
        """An image, or None where its pipeline gives none."""
        if index not in self.loaded:
            results = self.source[index]
            self.loaded[index] = None if results is None else clip_to_image(results)
        return self.loaded[index]

    def __getitem__(self, index: int) -> Sample:
        return self.load(index) or dict(gt_bboxes=())

    def draw(self, get_indexes: Callable[[Any], int | Sequence[int]], max_draws: int, copied: bool) -> list[Sample]:
        """Partners of one mix, distinct where there are enough images; none where no image could be loaded."""
        chosen: list[int] = []
        for _ in range(max_draws):
            indexes = get_indexes(self)
            drawn = list(indexes) if isinstance(indexes, Sequence) else [indexes]
            for index in map(int, drawn):
                if len(chosen) < len(drawn) and index not in chosen and self.load(index) is not None:
                    chosen.append(index)
            if len(chosen) >= min(len(drawn), len(self)):
                break
        partners = [self[chosen[i % len(chosen)]] for i in range(len(drawn))] if chosen else []
        return [copy.deepcopy(each) for each in partners] if copied else partners


@TRANSFORMS.register_module()
class StagedMix(BaseTransform):
    """Mix an image with others of its dataset, at a place in the pipeline and with a probability of one's choice.

    mmdet mixes in a MultiImageMixDataset, outside the pipeline, and its MixUp has no probability. This step needs a
    :class:`StagedDataset`, which gives the others (``mix_source``) and, in stages whose plan names the step, the
    probability. Boxes are clipped to their images first. An image stays as it is if there is nothing to mix it with.

    Required keys: ``img``, ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_ignore_flags``, ``mix_source``. Modified: what the
    transforms modify. Added: the name, to ``augmented`` (tuple of str), only where it was mixed.

    Args:
        name: what a plan calls this step.
        transforms: the first has ``get_indexes`` (mmdet's Mosaic, MixUp, CopyPaste; it must return a new image array
            if it mixes and the old one if it does not), the rest run on what was mixed.
        prob: probability where no plan names the step. Default 0.0.

    Raises:
        UserError: (a ValueError) for a probability outside of 0..1, a first transform that cannot mix, keeps images
            from sample to sample or has a probability of its own below 1.
    """

    max_draws = 20  # of partners, until they are distinct
    max_rounds = 3  # of partners, until the transform mixes: MixUp does not with an image without boxes

    def __init__(self, name: str, transforms: Sequence[Mapping[str, Any] | Callable[[Sample], Sample | None]],
                 prob: float = 0.0) -> None:
        if not isinstance(name, str) or not name:
            raise UserError(f'StagedMix: name must be a word that a plan can use, got {name!r}')
        if not isinstance(prob, (int, float)) or not 0 <= prob <= 1:
            raise UserError(f'StagedMix {name!r}: prob must be a number from 0 to 1, got {prob!r}')
        self.name = name
        self.prob = float(prob)
        self.transforms: list[Any] = [
            TRANSFORMS.build(each) if isinstance(each, Mapping) else each for each in transforms]
        first: Any = self.transforms[0] if self.transforms else None
        kind = type(first).__name__
        if not hasattr(first, 'get_indexes'):
            raise UserError(f'StagedMix {name!r}: the first of its transforms is {kind}, it must be one that mixes: '
                            'Mosaic or MixUp')
        if hasattr(first, 'results_cache'):
            raise UserError(f'StagedMix {name!r}: {kind} keeps images from one sample to the next; use '
                            f'{kind.removeprefix("Cached")}')
        if getattr(first, 'prob', 1) != 1:
            raise UserError(f'StagedMix {name!r}: {kind} has prob={first.prob}; set it to 1 and prob of StagedMix')

    def fit(self, scale: tuple[int, int]) -> None:
        """Make mixed images of another size (W, H) in pixels, that of the Letterbox in the same pipeline."""
        for each in self.transforms:
            if isinstance(each, Mosaic):
                each.img_scale = scale
            elif isinstance(each, MixUp):
                each.dynamic_scale = scale
            elif isinstance(each, RandomAffine) and tuple(each.border) != (0, 0):  # the cut out of Mosaic's canvas
                each.border = (-scale[0] // 2, -scale[1] // 2)

    def transform(self, results: Sample) -> Sample | None:
        """Mix one sample, or leave it; None where a later transform gives none.

        Raises:
            UserError: outside of a StagedDataset, if ``prob`` is above 0.
        """
        if self.prob == 0:
            return results
        source = results.get('mix_source')
        if source is None:
            raise UserError(f"StagedMix {self.name!r} has prob={self.prob} and nothing to mix with; wrap the dataset: "
                            "dict(type='StagedDataset', dataset=...)")
        if random.random() >= self.prob:
            return results
        mixed = self._mix(results, _Partners(source))
        if mixed is None:
            return results
        mixed['augmented'] = (*results.get('augmented', ()), self.name)
        return Compose(self.transforms[1:])(mixed)

    def _mix(self, results: Sample, partners: _Partners) -> Sample | None:
        """The first transform's result, None if there was nothing to mix with."""
        own = clip_to_image(results)
        own.pop('mix_source')  # Mosaic copies all of a sample, and a source holds the dataset
        for _ in range(self.max_rounds if len(partners) else 0):
            chosen = partners.draw(self.transforms[0].get_indexes, self.max_draws,
                                   not getattr(self.transforms[0], 'leaves_partners', False))
            if not chosen:
                continue
            mixed = self.transforms[0]({**own, 'mix_results': chosen})
            if mixed['img'] is not results['img']:
                mixed.pop('mix_results', None)
                return mixed
        return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}(name={self.name!r}, prob={self.prob}, transforms={self.transforms})'
