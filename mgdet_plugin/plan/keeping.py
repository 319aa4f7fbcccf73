"""What a run holds its model to: the config's ``keep``, plain data, and how many old images go beside the new ones."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mgdet_plugin.common.errors import UserError, is_number, is_whole, require, require_known
from mgdet_plugin.common.guard_record import AT_LEAST, OLD
from mgdet_plugin.models.multigrid_head import MultiGridHead

FORMS = ('maps', 'boxes', 'features')
ON_NEW = ('distil', 'spare', 'recolour')
CACHES = ('memory', 'file')
OLD_SET = OLD.rstrip('/')  # the validation set of ``val_cfg.others`` that what is kept is measured on
HELD_OUT = 0.2  # of the pictures, where no labelled set of the old domain judges


@dataclass(frozen=True)
class Keeping:
    """How a run holds its model to what the weights it starts from think of old images.

    Attributes:
        images: Folder of pictures like those the weights were trained on, searched to any depth, or the config of a
            dataset; labels are never used. None holds the model on new images alone, by ``on_new``.
        share: Of the images of a step, how many are old; they go beside the new ones, whose number stays.
        weight: Factor on the loss of holding; a stage's ``keep_weight`` takes its place.
        images_used: Pictures trained on, spread by what the weights see in them. Default: all.
        held_out: Share of the pictures never trained on, or a folder or dataset of others: what is kept is measured on
            them. Default: a fifth, or none where ``val_cfg.others`` has a labelled set named 'old'.
        at_least: Share of the old domain's metric that must be left.
        temperature: T of softened class and anchor probabilities (Hinton et al., arXiv 1503.02531, section 2).
        sure: Score from which the weights' own detections count as true; from ``unsure`` to it they are ignored.
        unsure: See ``sure``.
        on_new: What else is done with new images: 'distil' holds the model there, too, away from the labels; 'spare'
            counts the weights' sure boxes that touch no label as neither object nor background; 'recolour' holds the
            model on copies in other colours, which without ``images`` are all old images of a step, else half of them.
        recolour: Show the pictures of ``images`` in other colours: what the weights think of many unlike pictures
            stands in for what they think of old ones.
        cache: Keep what the weights think of old images in 'memory' or a 'file' in place of asking again each time;
            old images are then not augmented.
        form: 'maps' holds every cell of a ``MultiGridHead``, 'boxes' takes the weights' detections for labels,
            'features' holds the backbone's maps. Default: by the detector and by what was pretrained.
        new_classes: Names or indices of classes the weights do not know. Default: as the import of ``load_from`` tells.

    Raises:
        UserError: A value is out of its range.
    """
    images: str | Mapping[str, Any] | None = None
    share: float = 0.5
    weight: float = 1.0
    images_used: int | None = None
    held_out: float | str | Mapping[str, Any] | None = None
    at_least: float = AT_LEAST
    temperature: float = 1.0
    sure: float = 0.4
    unsure: float = 0.1
    on_new: str | None = None
    recolour: bool = False
    cache: str | None = None
    form: str | None = None
    new_classes: tuple[str | int, ...] | None = None

    @classmethod
    def build(cls, given: Any) -> Keeping:
        """The options of a config.

        Raises:
            UserError: One is unknown or out of its range.
        """
        require(isinstance(given, Mapping), "keep must be a dict such as dict(images='data/old/')", given)
        require_known(cls, given, 'keep')
        values = dict(given)
        names = values.get('new_classes')
        if isinstance(names, (list, tuple)):
            values['new_classes'] = tuple(names)
        return cls(**values)

    def __post_init__(self) -> None:
        self._check_sources()
        for name, low, high in (('share', 0, 1), ('at_least', 0, None), ('temperature', 0, None)):
            value = getattr(self, name)
            require(is_number(value) and low < value and (high is None or value < high) and math.isfinite(value),
                    f'keep.{name} must be a number above {low}' + (f' and below {high}' if high else ''), value)
        require(self.at_least <= 1, 'keep.at_least is a share, at most 1', self.at_least)
        check_weight('keep.weight', self.weight)
        require(all(map(is_number, (self.unsure, self.sure))) and 0 <= self.unsure <= self.sure <= 1,
                'keep.unsure and keep.sure must be scores from 0 to 1, the first not above the second',
                (self.unsure, self.sure))
        require(self.images_used is None or is_whole(self.images_used, 1),
                'keep.images_used must be a whole number of pictures from 1', self.images_used)
        for name, allowed in (('on_new', ON_NEW), ('cache', CACHES), ('form', FORMS)):
            value = getattr(self, name)
            require(value is None or value in allowed, f'keep.{name} must be one of {allowed} or None', value)
        require(self.new_classes is None or isinstance(self.new_classes, tuple),
                'keep.new_classes must be a list of names or indices', self.new_classes)

    def _check_sources(self) -> None:
        """Refuse pictures that are given in no known way."""
        require(isinstance(self.recolour, bool), 'keep.recolour must be True or False', self.recolour)
        if not self.holds_images and self.on_new != 'distil':
            raise UserError("keep needs images, a folder of pictures like those the weights were trained on: "
                            "keep=dict(images='data/old/'); where there are none keep=dict(on_new='recolour') keeps "
                            'less')
        changing = 'keep.recolour' if self.recolour else "keep.on_new='recolour'" if self.holds_copies else ''
        if changing and self.cache:
            raise UserError(f'keep.cache remembers pictures as they are, and {changing} changes them each time; take '
                            'one of the two out')
        if self.recolour and self.images is None:
            raise UserError("keep.recolour changes the pictures of keep.images, and none are given; for copies of the "
                            "new ones take keep=dict(on_new='recolour')")
        require(self.images is None or isinstance(self.images, (str, Mapping)),
                'keep.images must be a folder or the config of a dataset', self.images)
        held = self.held_out
        require(held is None or isinstance(held, (str, Mapping)) or (is_number(held) and 0 <= held < 1),
                'keep.held_out must be a share from 0 and below 1, a folder or the config of a dataset', held)

    @property
    def holds_images(self) -> bool:
        """Whether images go beside the new ones."""
        return self.images is not None or self.holds_copies

    @property
    def holds_copies(self) -> bool:
        """Whether copies of the new images in other colours are among them."""
        return self.on_new == 'recolour'

    def others(self, followed: bool) -> float | str | Mapping[str, Any]:
        """What is held out: a share of the pictures, 0 for none, or other ones.

        Args:
            followed: Whether a labelled set of the old domain is measured on.
        """
        if followed:
            return 0.0
        return HELD_OUT if self.held_out is None else self.held_out

    def beside(self, new: int) -> int:
        """Old images beside so many new ones.

        Raises:
            UserError: The share leaves no whole image.
        """
        if not self.holds_images or not new:
            return 0
        count = round(new * self.share / (1 - self.share))
        if count < 1:
            raise UserError(f'keep.share {self.share:g} of a batch of {new} leaves no room for an old image; take a '
                            f'share of at least {1 / (new + 1):.2g} or a larger batch')
        return count


def check_weight(name: str, value: Any) -> None:
    """Refuse a factor that is no finite number from 0.

    Raises:
        UserError: With the name of the option.
    """
    require(is_number(value) and 0 <= value < math.inf, f'{name} must be a number from 0', value)


def form_of(model: nn.Module, start: str, given: str | None) -> str:
    """How a detector is held: as told, else by what was pretrained and by its head."""
    if given is not None:
        return given
    if start == 'backbone':
        return 'features'
    return 'maps' if isinstance(getattr(model, 'bbox_head', None), MultiGridHead) else 'boxes'


def is_followed(cfg: Mapping[str, Any]) -> bool:
    """Whether a config measures on a labelled set of the old domain."""
    return OLD_SET in ((cfg.get('val_cfg') or {}).get('others') or {})
