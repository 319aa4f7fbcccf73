"""Weights are checked against the model before anything is built on them: mmengine loads what fits and says little."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import command
from mgdet_plugin.common.weights_path import check_weights_path
from mgdet_plugin.datasets.formats.annotation_check import config_name, dataset_names, iter_dataset_cfgs
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.progress import stages_before
from mgdet_plugin.plan.rules import check_rules, refuse_broken
from mgdet_plugin.plan.wiring import check_wiring

_SHOWN = 3


def check_weights(cfg: Config, split: str = 'train', start: str | None = None) -> list[str]:
    """Check ``cfg.load_from`` against ``cfg.model``, so that every parameter is loaded or none.

    Remote addresses are left to mmengine.

    Args:
        cfg: A whole config.
        split: Whose dataset names the classes, ``train`` or ``test``.
        start: The plan's, where ``load_from`` is a checkpoint to resume from. Default: by what is loaded.

    Returns:
        What a person should know about weights that do fit, one line each.

    Raises:
        UserError: If the file is missing, a Keras file, no checkpoint, has missing, unexpected or mismatched keys, or
            names the config's classes in another order.
    """
    path = cfg.get('load_from')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model)  # refuses a wrong field, with or without weights
    plan = Plan.from_cfg(cfg) if split != 'test' and cfg.get('stages') else None
    if plan:
        plan = plan.with_start(start or plan.start)
        check_wiring(cfg, plan)
    is_local = path and '://' not in str(path)
    state_dict, content = read_weights(str(path), cfg) if is_local else ({}, {})
    history = stages_before(content, own=not cfg.get('resume'))
    lines = refuse_broken(check_rules(plan, cfg, model, history)) if plan else []
    if not is_local:
        return lines + ([] if path or split == 'test' else check_backbone(cfg, model))
    check_same_tensors(str(path), state_dict, model.state_dict(), cfg)
    return lines + compare_stored(str(path), content, cfg, split)


def check_backbone(cfg: Config, model: nn.Module) -> list[str]:
    """Check the weights that ``backbone.init_cfg`` names; there is nothing to say where they fit.

    Raises:
        UserError: The file is missing, a Keras file, no checkpoint, or does not hold every tensor of the backbone.
    """
    init = (cfg.model.get('backbone') or {}).get('init_cfg') or {}
    path = init.get('checkpoint') if isinstance(init, Mapping) and init.get('type') == 'Pretrained' else None
    if not path or '://' in str(path):
        return []
    state, _ = read_weights(str(path), cfg, part='backbone')
    prefix = init.get('prefix') or ''
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    wanted = model.get_submodule('backbone').state_dict()
    missing, others = _lacking(found, wanted)
    if missing or others:
        what = _counted(dict(missing=missing) | {'of another shape': others})
        raise UserError(f"{path} does not fit the backbone of {config_name(cfg)} (prefix '{prefix}'): "
                        f'{", ".join(what)}; import Darknet53: '
                        f'{command("import_keras", "darknet53.h5", path, "--part", "backbone")}')
    return []


def read_weights(path: str, cfg: Config, part: str = 'model') -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """The weights in a checkpoint and what is stored about them, read without executing anything.

    Args:
        path: The file.
        cfg: The config, for what to do about a missing file.
        part: 'model' or 'backbone', for the same.

    Returns:
        Name -> tensor, without the prefix of a distributed wrapper; and all of the file's content.

    Raises:
        UserError: If it is missing, a Keras file or no checkpoint.
    """
    check_weights_path(path, config_name(cfg), part)
    state_dict, content = load_checkpoint(path)
    return {re.sub(r'^module\.', '', key): value for key, value in state_dict.items()}, content


def compare_stored(path: str, content: Mapping[str, Any], cfg: Config, split: str) -> list[str]:
    """Hold what a checkpoint says of its weights, its classes and anchors, against the config.

    Returns:
        A line for each difference that a person should know of.

    Raises:
        UserError: The config's classes in another order.
    """
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    return compare_classes(path, meta, cfg, split) + compare_anchors(path, meta, cfg)


def compare_classes(path: str, meta: Mapping[str, Any], cfg: Config, split: str) -> list[str]:
    """Hold the class names stored with weights against the config's: a class row means a class by its place alone.

    Returns:
        One line where the names are others; names are no proof, a data set may call a class otherwise.

    Raises:
        UserError: The same names in another order.
    """
    stored = meta.get('dataset_meta')
    names = stored.get('classes') if isinstance(stored, Mapping) else None
    leaf = next(iter_dataset_cfgs((cfg.get(f'{split}_dataloader') or {}).get('dataset')), None)
    if not names or leaf is None:
        return []
    ours, theirs = dataset_names(leaf, f'{split}_dataloader.dataset'), tuple(map(str, names))
    if ours == theirs or len(ours) != len(theirs):  # another number was refused before, or is the config's to explain
        return []
    row, *_ = [row for row, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
    seen = f'class {row} is {theirs[row]!r} in {path} and {ours[row]!r} in {config_name(cfg)}'
    if sorted(ours) == sorted(theirs):
        raise UserError(f'{seen}: the same classes in another order, so every class would be taken for another; list '
                        'metainfo.classes as the weights do, or import the weights again with --classes '
                        f'{config_name(cfg)}')
    return [f'{seen}: classes go by their place, so its row is taken over; to keep rows by name import the weights '
            f'again with --classes {config_name(cfg)}']


def compare_anchors(path: str, meta: Mapping[str, Any], cfg: Config) -> list[str]:
    """One line where an import recorded other anchors than the config has."""
    report = meta.get('keras_import')
    stored = report.get('anchors') if isinstance(report, Mapping) else None
    ours = cfg.model.get('bbox_head', {}).get('anchors')
    if not stored or not ours:
        return []
    theirs, wanted = ([[tuple(map(float, size)) for size in scale] for scale in anchors] for anchors in (stored, ours))
    if theirs == wanted:
        return []
    return [f'{path} was imported for the anchors {stored}, {config_name(cfg)} has others: every predicted size '
            'changes with its anchor; set model.bbox_head.anchors to those']


def check_same_tensors(path: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], cfg: Config) -> None:
    """Refuse weights that do not have the names and shapes a model's state dict has, or numbers that are not finite.

    A checkpoint of the backbone alone is refused too; a config names it in ``backbone.init_cfg``.

    Raises:
        UserError: With the missing, unexpected and mismatched names.
    """
    missing, mismatched = _lacking(found, wanted)
    unexpected = [key for key in found if key not in wanted]
    predictions = [key for key in mismatched if '.predict_convs.' in key]
    if predictions and len(predictions) == len(mismatched) and not missing and not unexpected:
        others = 5 + len(cfg.model.bbox_head.anchors[0])  # channels of a map that are not classes
        classes = [state[predictions[0]].shape[0] - others for state in (found, wanted)]
        raise UserError(f'{path} was trained on {classes[0]} classes, the config has {classes[1]}: give '
                        f'those rows by name ({command("import_keras", path, "fit.pth")} --classes {config_name(cfg)}, '
                        f'or --add-classes NAMES for new ones beside the old), or set '
                        f'model.bbox_head.num_classes={classes[0]}')
    problems = _counted(dict(missing=missing, unexpected=unexpected))
    if mismatched:
        shown = [f'{key} {tuple(found[key].shape)} in the file, {tuple(wanted[key].shape)} in the model'
                 for key in mismatched[:_SHOWN]]
        problems.append(f'{len(mismatched)} of another shape ({"; ".join(shown)})')
    if problems:
        raise UserError(f'{path} does not fit the model of {config_name(cfg)}: {", ".join(problems)}; give the '
                        'weights of this model')
    broken = [key for key, value in found.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise UserError(f'{path} has numbers that are not finite in {_counted({"of its tensors": broken})[0]}: a '
                        'model with them finds nothing; give an earlier checkpoint')


def _lacking(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names that are missing, and names whose tensors have another shape."""
    return ([key for key in wanted if key not in found],
            [key for key in wanted if key in found and found[key].shape != wanted[key].shape])


def _counted(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    """The names of each kind that has some, in words."""
    more = {kind: f', and {len(names) - _SHOWN} more' if len(names) > _SHOWN else '' for kind, names in kinds.items()}
    return [f'{len(names)} {kind} ({", ".join(names[:_SHOWN])}{more[kind]})' for kind, names in kinds.items() if names]
