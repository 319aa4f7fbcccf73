"""Weights are checked against the model before anything is built on them: mmengine loads what fits and says little."""
from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from mgdet_plugin.datasets.annotation_check import config_name
from mgdet_plugin.errors import UserError

KERAS_SUFFIXES = ('.h5', '.hdf5', '.keras')
_SHOWN = 3


def check_weights(cfg: Config) -> None:
    """Check ``cfg.load_from`` against ``cfg.model``, so that every parameter is loaded or none.

    Remote addresses are left to mmengine.

    Args:
        cfg: A whole config.

    Raises:
        UserError: If the file is missing, a Keras file, no checkpoint, or has missing, unexpected or mismatched keys.
    """
    path = cfg.get('load_from')
    state_dict = read_state_dict(str(path), cfg) if path and '://' not in str(path) else None
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model)  # refuses a wrong field, with or without weights
    if state_dict is not None:
        compare(str(path), state_dict, model.state_dict(), cfg)


def read_state_dict(path: str, cfg: Config) -> Mapping[str, Tensor]:
    """The weights in a checkpoint, read without executing anything stored in it.

    Args:
        path: The file.
        cfg: The config, for what to do about a missing file.

    Returns:
        Name -> tensor, without the prefix of a distributed wrapper.

    Raises:
        UserError: If it is missing, a Keras file or no checkpoint.
    """
    name = config_name(cfg)
    if path.endswith(KERAS_SUFFIXES):
        output = re.sub(r'(\.weights)?\.\w+$', '.pth', path)
        raise UserError(f'{path} is a Keras file; import it first: python tools/import_keras.py {path} {output} '
                        f'--config {name}, then set load_from={output}')
    if not os.path.isfile(path):
        raise UserError(f'the weights {path} are not there; import your Keras file: python tools/import_keras.py '
                        f'model5.h5 {path} --config {name}, or try it on embedded data: python tools/train.py {name} '
                        '--demo')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f'{path} is no checkpoint that torch can load safely ({reason}); give a .pth file that '
                        'tools/import_keras.py or a training run wrote') from None
    state_dict = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise UserError(f'{path} holds no state_dict of tensors; give a .pth file that tools/import_keras.py or a '
                        'training run wrote')
    return {re.sub(r'^module\.', '', key): value for key, value in state_dict.items()}


def compare(path: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], cfg: Config) -> None:
    """Raise unless two state dicts have the same names and shapes.

    A checkpoint of the backbone alone is refused too; a config names it in ``backbone.init_cfg``.

    Raises:
        UserError: With the missing, unexpected and mismatched names.
    """
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    mismatched = [key for key in wanted if key in found and found[key].shape != wanted[key].shape]
    predictions = [key for key in mismatched if '.predict_convs.' in key]
    if predictions and len(predictions) == len(mismatched) and not missing and not unexpected:
        classes = [state[predictions[0]].shape[0] - _base_channels(cfg) for state in (found, wanted)]
        raise UserError(f'{path} was trained on {classes[0]} classes, the config has {classes[1]}: import it again '
                        f'with --classes {classes[1]}, or set model.bbox_head.num_classes={classes[0]}')
    problems = [f'{len(keys)} {kind} ({_some(keys)})' for kind, keys in
                (('missing', missing), ('unexpected', unexpected)) if keys]
    if mismatched:
        shown = [f'{key} {tuple(found[key].shape)} in the file, {tuple(wanted[key].shape)} in the model'
                 for key in mismatched[:_SHOWN]]
        problems.append(f'{len(mismatched)} of another shape ({"; ".join(shown)})')
    if problems:
        raise UserError(f'{path} does not fit the model of {config_name(cfg)}: {", ".join(problems)}; give the '
                        'weights of this model')


def _base_channels(cfg: Config) -> int:
    """Channels of a prediction map that are not classes."""
    return 5 + len(cfg.model.bbox_head.anchors[0])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more: Any = f', and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more
