"""The loss of a training file as fields of ``MultiGridLoss``."""
from __future__ import annotations

from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.models.multigrid_loss import CLASS_WEIGHTS, NORMALIZERS, RECIPE_SCALES
from mgdet_plugin.prepare.choices import Scenario
from mgdet_plugin.prepare.tensorflow.account import DIFFERS, NONE, Account

LOSS = 'training.loss.'
_OWN = ('training from nothing has a loss of its own here (configs/_base_/models/multigrid_scratch.py, '
        'docs/accuracy.md)')
_OPTIONS = ('use_iou_aware_objectness', 'iou_objectness_power', 'iou_objectness_ratio', 'trainable_nms_weight',
            'trainable_nms_power')
_CONSENSUS = ('use_consensus_loss', 'consensus_kernel_size', 'consensus_iou_power', 'consensus_min_iou',
              'consensus_coord_scale', 'consensus_obj_scale', 'consensus_class_scale', 'consensus_stop_gradient',
              'consensus_center_tolerance')
LOSS_KEYS = (
    'training.loss_option', 'training.label_smoothing', 'training.loss_normalization', 'training.class_weights',
    'training.class_weights_method', 'training.elim_grid_sense', 'training.multi_anchor_assign',
    *(LOSS + name for name in (*RECIPE_SCALES, *_OPTIONS, *_CONSENSUS)))


def loss_fields(account: Account, scenario: Scenario) -> dict[str, Any]:
    """Fields for ``model.bbox_head.loss``; none where the run starts from nothing.

    Raises:
        UserError: A value is out of its range.
    """
    account.note(not account.flag('training.elim_grid_sense', False), 'training.elim_grid_sense',
                 'the activation of centres is fixed, tanh and sigmoid as there', 'the activation of centres is fixed')
    account.note(not account.flag('training.multi_anchor_assign', False), 'training.multi_anchor_assign',
                 'an object has one anchor', 'an object has one anchor, that of the largest overlap')
    if scenario == 'nothing':
        account.note_all(DIFFERS, dict.fromkeys(set(LOSS_KEYS) - set(account.entries), _OWN))
        return _class_weights(account)
    return {**_scales(account), **_form(account), **_objectness(account), **_consensus(account),
            **_class_weights(account)}


def _scales(account: Account) -> dict[str, Any]:
    """Nothing: fine-tuning keeps the scales that the weights were trained with."""
    for name, theirs in RECIPE_SCALES.items():
        account.note(account.number(LOSS + name, theirs) == theirs, LOSS + name, f'loss.{name}={theirs:g}',
                     f'loss.{name}={theirs:g}, what the weights were trained with; to use another set it and '
                     "plan.allow=['loss-scales']")
    return {}


def _form(account: Account) -> dict[str, Any]:
    """Squared errors or a loss on boxes, smoothing, and what sums are divided by."""
    option = account.whole('training.loss_option', 2, 1)
    if option > 3:
        raise UserError(f'{account.where}: training.loss_option is {option}; 1, 2 or 3 is needed')
    account.note(option < 3, 'training.loss_option', 'squared errors weighted by overlap, and the anchor term (1 and 2 '
                 'give the same total)', "loss.iou_loss=dict(type='DIoULoss'), mmdet's in place of theirs, whose "
                 'losses on boxes read log sizes as sizes; GIoULoss and CIoULoss go, too')
    smoothing = account.number('training.label_smoothing', 0.0, 0, 0.999)
    account.carried('training.label_smoothing', f'loss.label_smoothing={smoothing:g}')
    return dict(label_smoothing=smoothing, normalizers=_normalizers(account),
                **(dict(iou_loss=dict(type='DIoULoss', loss_weight=1.0)) if option == 3 else {}))


def _normalizers(account: Account) -> tuple[str, ...]:
    key = 'training.loss_normalization'
    given = account.values.get(key) or ['batch']
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else [given]
    if not set(map(str, names)) <= set(NORMALIZERS):
        raise UserError(f'{account.where}: {key} is {given!r}; a list of {", ".join(NORMALIZERS)} is needed')
    kept = tuple(name for name in names if name != 'grid') or ('batch', )
    account.note(len(kept) == len(names), key, f'loss.normalizers={kept}', f'loss.normalizers={kept}: grid divides '
                 "losses by thousands, and what weights know drowns (plan.allow=['grid-normalizer'])")
    return kept


def _objectness(account: Account) -> dict[str, Any]:
    """The two options of objectness; the base has both on."""
    aware = account.flag(LOSS + 'use_iou_aware_objectness', False)
    ratio = account.number(LOSS + 'iou_objectness_ratio', 1.0, 0, 1) if aware else 0.0
    power = account.number(LOSS + 'iou_objectness_power', 1.0)
    weight, soft = (account.number(LOSS + f'trainable_nms_{name}', default) for name, default in
                    (('weight', 0.0), ('power', 2.0)))
    account.carried(LOSS + 'use_iou_aware_objectness', f'loss.iou_aware_ratio={ratio:g}')
    account.carried(LOSS + 'iou_objectness_ratio', f'loss.iou_aware_ratio={ratio:g}' + ('' if aware else ', it is off'))
    account.carried(LOSS + 'iou_objectness_power', f'loss.iou_aware_power={power:g}' if aware else 'not used, it is '
                    'off')
    account.carried(LOSS + 'trainable_nms_weight', f'loss.soft_ignore_weight={weight:g}')
    account.carried(LOSS + 'trainable_nms_power', f'loss.soft_ignore_power={soft:g}')
    return dict(iou_aware_ratio=ratio, **(dict(iou_aware_power=power) if aware else {}), soft_ignore_weight=weight,
                **(dict(soft_ignore_power=soft) if weight else {}))


def _consensus(account: Account) -> dict[str, Any]:
    """The consensus term, which has one scale here."""
    used = account.flag(LOSS + 'use_consensus_loss', False)
    scale = account.number(LOSS + 'consensus_coord_scale', 0.5) if used else 0.0
    kernel = account.whole(LOSS + 'consensus_kernel_size', 3, 1)
    if not used:
        for name in _CONSENSUS:
            account.carried(LOSS + name, 'loss.consensus_scale=0, it is off')
        return {}
    account.carried(LOSS + 'use_consensus_loss', f'loss.consensus_scale={scale:g}')
    account.carried(LOSS + 'consensus_coord_scale', f'loss.consensus_scale={scale:g}')
    account.note(kernel == 3, LOSS + 'consensus_kernel_size', 'an object has 3 x 3 cells', 'an object has 3 x 3 cells')
    one = 'the term is of boxes alone: it draws the cells of an object to their mean box'
    plain = 'the mean is plain: cells are not weighed, and all have a gradient'
    account.note_all(NONE, {
        LOSS + 'consensus_obj_scale': one, LOSS + 'consensus_class_scale': one, LOSS + 'consensus_iou_power': plain,
        LOSS + 'consensus_min_iou': plain, LOSS + 'consensus_stop_gradient': plain,
        LOSS + 'consensus_center_tolerance': "which cells are an object's is known from its targets"})
    return dict(consensus_scale=scale)


def _class_weights(account: Account) -> dict[str, Any]:
    """Factors of classes: none, by a method, or as listed."""
    key, by = 'training.class_weights', 'training.class_weights_method'
    given = account.values.get(key)
    method = account.text(by, 'balanced', CLASS_WEIGHTS)
    if given is None:
        account.carried(key, 'loss.class_weights=None')
        account.carried(by, 'not used without class_weights')
        return dict(class_weights=None)
    if isinstance(given, str) and given.casefold() == 'auto':
        account.carried(key, 'counted in the training set when the run starts')
        account.note(method != 'balanced', by, f"loss.class_weights='{method}'", "loss.class_weights='balanced': "
                     'objects / (classes x objects of the class), whose mean is not made 1')
        return dict(class_weights=method)
    if not isinstance(given, (list, tuple)) or not all(isinstance(each, (int, float)) for each in given):
        raise UserError(f'{account.where}: {key} is {given!r}; null, auto or a list of a factor a class is needed')
    account.carried(key, 'loss.class_weights as listed')
    account.carried(by, 'not used where factors are listed')
    return dict(class_weights=tuple(map(float, given)))
