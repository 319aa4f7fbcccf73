"""The file of a model that a training or evaluation file names: input size, classes and anchors."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.name_lists import text_names
from mgdet_plugin.prepare.choices import STRIDE, TRAINED_AT, Choice
from mgdet_plugin.prepare.tensorflow.account import NONE, Account
from mgdet_plugin.prepare.tensorflow.settings_file import SettingsFile, flat, load_yaml

ARCHITECTURE = 'multigriddet_darknet'
Anchors = tuple[tuple[tuple[float, float], ...], ...]  # (w, h) in pixels, coarse scale first
BASE_ANCHORS: Anchors = (((112, 74), (149, 190), (370, 328)), ((28, 17), (56, 112), (57, 35)),
                         ((9, 10), (13, 28), (28, 55)))  # configs/_base_/models/multigrid_darknet53.py
_PRESET = 'model.preset.'
MODEL_KEYS = ('model_config', 'model.name', 'model.type', *(
    _PRESET + name for name in ('architecture', 'num_classes', 'input_shape', 'anchors_path', 'classes_path')))


@dataclass(frozen=True)
class ModelFile:
    """What a model's file says; None and empty where it does not.

    Attributes:
        account: Of its keys, None where there is no file.
        size: Of the input.
        classes: File of class names.
        head: Fields of ``model.bbox_head``.
    """

    account: Account | None = None
    size: Choice | None = None
    classes: Path | None = None
    head: dict[str, Any] | None = None


def read_model_file(settings: SettingsFile, account: Account) -> ModelFile:
    """Read the file that ``model_config`` names, if it is there.

    Raises:
        UserError: It cannot be read, or is of a network that is none of ours.
    """
    named = account.text('model_config')
    path = settings.find(named) if named else None
    if path is None:
        account.differs('model_config', 'not found, so input size, classes and anchors are those of data and weights')
        return ModelFile()
    account.carried('model_config', 'read, see below')
    own = Account(path.name, dict(flat(load_yaml(path)).items()))
    architecture = own.text(_PRESET + 'architecture', ARCHITECTURE)
    kind = own.text('model.type', 'preset')
    if architecture != ARCHITECTURE or kind != 'preset':
        raise UserError(f'{path} describes {architecture!r} of type {kind!r}; weights and configs here are of the '
                        f'preset {ARCHITECTURE}')
    own.carried('model.name', 'not needed')
    own.carried('model.type', 'the network of our configs')
    own.carried(_PRESET + 'architecture', 'the network of our configs')
    own.carried(_PRESET + 'num_classes', 'model.bbox_head.num_classes, as many as there are names')
    own.note_all(NONE, {'model.custom.': 'not used there for a preset'})
    size = input_size(own, _PRESET + 'input_shape')
    classes = settings.find(own.text(_PRESET + 'classes_path') or '')
    own.carried(_PRESET + 'classes_path', "names of the classes, where the settings' own file names none")
    return ModelFile(own, size, classes, _anchors(own, settings))


def input_size(account: Account, key: str) -> Choice | None:
    """The square input of an ``input_shape`` (height, width, channels), None where it is not given.

    Raises:
        UserError: It is no shape, not square, or no multiple of 32.
    """
    shape = account.values.get(key)
    if shape is None:
        return None
    if not isinstance(shape, (list, tuple)) or len(shape) < 2 or not all(isinstance(each, int) for each in shape[:2]):
        raise UserError(f'{account.where}: {key} is {shape!r}; [height, width, 3] is needed')
    height, width = shape[:2]
    if height != width or height < STRIDE or height % STRIDE:
        raise UserError(f'{account.where}: {key} is {shape!r}; a square with sides in multiples of {STRIDE} is needed; '
                        'change it here; another scale of Letterbox can be set in the config that is made')
    account.carried(key, f'img_scale=({width}, {height})')
    usual = TRAINED_AT['model5']
    trained = '' if width == usual else f'; the weights were trained at {usual}'
    return Choice(width, f'as in {account.where}{trained}')


def _anchors(account: Account, settings: SettingsFile) -> dict[str, Any]:
    """``anchors`` of the head where they are not the base's."""
    key = _PRESET + 'anchors_path'
    named = account.text(key)
    path = settings.find(named) if named else None
    if path is None:
        account.differs(key, "not found, so anchors are those of the base, which are model5's")
        return {}
    anchors = read_anchors(path)
    same = anchors == BASE_ANCHORS
    account.carried(key, 'the anchors of the base' if same else "model.bbox_head.anchors, other ones than model5's")
    return {} if same else dict(anchors=[list(scale) for scale in anchors])


def read_anchors(path: Path) -> Anchors:
    """Anchors of a file, a scale a line (``w,h w,h w,h``) or all in one, coarse scale first whatever their order.

    Raises:
        UserError: There are not nine pairs of positive numbers.
    """
    text = ' '.join(text_names(path, str(path)))
    numbers = [float(each) for each in re.findall(r'\d+(?:\.\d+)?', text)]
    if len(numbers) != 18 or min(numbers) <= 0:
        raise UserError(f'{path} holds {len(numbers)} numbers; nine anchors "w,h" are needed, three a scale')
    pairs = list(zip(numbers[::2], numbers[1::2]))
    scales = [tuple(pairs[start:start + 3]) for start in (0, 3, 6)]
    return tuple(sorted(scales, key=_area, reverse=True))


def _area(scale: Sequence[tuple[float, float]]) -> float:
    return sum(width * height for width, height in scale)
