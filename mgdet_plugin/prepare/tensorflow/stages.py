"""Epochs, freezing, rates and mixing of a training file as stages, held to the rules of the guide."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mgdet_plugin.plan.plan import RECIPE_ETA_MIN, RECIPE_WARMUP_EPOCHS, RECIPE_WARMUP_SHARE, Stage
from mgdet_plugin.plan.rules import MAX_FULL_RATE
from mgdet_plugin.prepare.choices import Choice, Scenario
from mgdet_plugin.prepare.tensorflow.account import DIFFERS, Account

StageFields = tuple[Mapping[str, Any], str]
AUGMENTATION = 'training.augmentation.'
_SCHEDULES = ('cosine_annealing', 'reduce_on_plateau', 'constant')
_NECK_EPOCHS = 5  # of the guide
STAGE_KEYS = (
    'training.epochs', 'training.initial_epoch', 'training.transfer_epochs', 'training.freeze_level',
    'training.learning_rate', 'optimizer.learning_rate', 'lr_schedule.type', 'lr_schedule.warmup_epochs',
    'lr_schedule.warmup_lr_factor', 'lr_schedule.min_lr', 'lr_schedule.factor', 'lr_schedule.patience',
    *(AUGMENTATION + name for name in ('enabled', 'enhance_type', 'mosaic_prob', 'mixup_prob')))
_OWN_RATES = 'training from nothing has rates of its own here (configs/_base_/schedules/scratch.py)'


@dataclass(frozen=True)
class Length:
    """Epochs of a run: all of it, those frozen at its beginning, and what is frozen in them."""

    whole: int
    frozen: int
    level: int


def stages_of(account: Account, scenario: Scenario) -> tuple[StageFields, ...]:
    """Fields of each stage and why it is so.

    Raises:
        UserError: A value is out of its range.
    """
    length = length_of(account)
    rate, shape = _rate(account, scenario), _shape(account)
    mixing = _mixing(account)
    parts = list(_parts(length, scenario))
    _say_freezing(account, length, parts)
    return tuple(_stage(fields, why, rate, shape, mixing) for fields, why in parts)


def epochs_from_nothing(account: Account) -> Choice:
    """The length of a run without stages; rates, freezing and mixing are those of the recipe.

    Raises:
        UserError: A value is out of its range.
    """
    length = length_of(account)
    account.differs('training.freeze_level', 'nothing is frozen where nothing is loaded')
    account.differs('training.transfer_epochs', 'nothing is frozen where nothing is loaded')
    mixing = ('training from nothing has the augmentation of its base; mosaic and mixup are steps of its pipeline '
              'with a prob of their own')
    account.note_all(DIFFERS, {key: mixing if key.startswith(AUGMENTATION) else _OWN_RATES for key in STAGE_KEYS
                               if key not in account.entries})
    return Choice(length.whole, f'those of {account.where}')


def length_of(account: Account) -> Length:
    """The epochs, those done before (``initial_epoch``) taken off."""
    whole, done = account.whole('training.epochs', 100, 1), account.whole('training.initial_epoch', 0)
    left, frozen = max(1, whole - done), account.whole('training.transfer_epochs', 0)
    level = int(account.number('training.freeze_level', 1, 0, 2))
    account.carried('training.epochs', f'{left} epochs in all')
    account.note(not done, 'training.initial_epoch', 'a run counts from 0', f'a run counts from 0; the {done} epochs '
                 'before are taken off')
    return Length(left, min(left, max(0, frozen - done)), level)


def _parts(length: Length, scenario: Scenario) -> Iterator[StageFields]:
    """Name, epochs and level of each stage."""
    frozen = length.frozen if length.level else 0
    rest = length.whole - frozen
    if frozen:
        name = 'head' if length.level == 2 else 'neck'
        yield dict(name=name, epochs=frozen, freeze_level=length.level), f'{frozen} frozen epochs, as there'
        if length.level == 2 and scenario == 'full' and rest:
            neck = min(_NECK_EPOCHS, max(1, rest // 2))
            yield dict(name='neck', epochs=neck, freeze_level=1), ('there all is freed at once; the neck comes first, '
                                                                   'or what the weights know is lost')
            rest -= neck
    if rest:
        yield dict(name='full', epochs=rest, freeze_level=0), 'everything, for the rest of the epochs'


def _say_freezing(account: Account, length: Length, parts: list[StageFields]) -> None:
    said = ', then '.join(f'{fields["name"]} {fields["epochs"]} epochs' for fields, _ in parts)
    inserted = {'head', 'neck'} <= {fields['name'] for fields, _ in parts}
    account.note(not inserted, 'training.transfer_epochs', f'stages: {said}', f'stages: {said}; there all is freed '
                 'right after the head, which the guide forbids')
    account.note(bool(length.frozen), 'training.freeze_level', f'freeze_level={length.level} of the first stage',
                 'not used: without transfer_epochs nothing is frozen, as there')


def _stage(fields: Mapping[str, Any], why: str, rate: float, shape: Mapping[str, Any],
           mixing: Mapping[str, Any]) -> StageFields:
    """A whole stage, checked."""
    warmup = min(shape['warmup'], round(RECIPE_WARMUP_SHARE * fields['epochs'], 2))
    eta = min(1.0, shape['least'] / rate)
    stage = dict(fields, lr=rate)
    if shape['warmup'] != RECIPE_WARMUP_EPOCHS:
        stage['warmup_epochs'] = warmup
    if shape['ratio'] != Stage.warmup_ratio:
        stage['warmup_ratio'] = shape['ratio']
    if shape['least'] != RECIPE_ETA_MIN:
        stage['eta_min_ratio'] = float(f'{eta:.6g}')
    if shape['schedule'] != Stage.schedule:
        stage['schedule'] = shape['schedule']
    if shape['schedule'] == 'plateau':
        stage['plateau'] = shape['plateau']
    heads = fields['freeze_level'] == 2
    stage |= dict(mosaic_prob=0.0, mixup_prob=0.0) if heads else {key: value for key, value in mixing.items()
                                                                  if key != 'clean'}
    if mixing['clean']:
        stage['clean'] = True
    Stage.build(stage)
    return stage, why


def _rate(account: Account, scenario: Scenario) -> float:
    """The rate: the optimizer's counts, and full weights take no more than the guide's."""
    own, other = 'optimizer.learning_rate', 'training.learning_rate'
    counts = own if account.values.get(own) is not None else other
    given = account.number(counts, 1e-4, 1e-12)
    rate = min(given, MAX_FULL_RATE) if scenario == 'full' else given
    account.note(rate == given, counts, f'lr={rate:g} of every stage', f'lr={rate:g} of every stage, the most that '
                 "full pretrained weights take (plan.allow=['rate'])")
    if counts == own:
        same = account.number(other, given, 1e-12) == given
        account.note(same, other, f'lr={rate:g}, as {own}', f'not used: {own} is what counts there, too')
    return rate


def _shape(account: Account) -> dict[str, Any]:
    """Warmup and what follows it."""
    kind = account.text('lr_schedule.type', 'constant', _SCHEDULES)
    if kind == 'constant':
        account.note_all(DIFFERS, {'lr_schedule.': 'not used by a constant rate'})
        account.carried('lr_schedule.type', "schedule='constant', no warmup")
        return dict(schedule='constant', warmup=0.0, ratio=Stage.warmup_ratio, least=RECIPE_ETA_MIN)
    if kind == 'reduce_on_plateau':
        return _plateau(account)
    account.differs('lr_schedule.type', "schedule='cosine': every stage has a warmup and a cosine of its own; there "
                    'one cosine runs on over the edge')
    warmup = account.number('lr_schedule.warmup_epochs', RECIPE_WARMUP_EPOCHS)
    ratio = account.number('lr_schedule.warmup_lr_factor', Stage.warmup_ratio, 0, 1)
    least = account.number('lr_schedule.min_lr', RECIPE_ETA_MIN)
    account.carried('lr_schedule.warmup_epochs', f'{warmup:g} epochs of each stage, at most three fifths of it')
    account.carried('lr_schedule.warmup_lr_factor', f'warmup_ratio={ratio:g}')
    account.carried('lr_schedule.min_lr', f'where each cosine ends, {least:g}')
    return dict(schedule='cosine', warmup=warmup, ratio=ratio, least=least)


def _plateau(account: Account) -> dict[str, Any]:
    """A rate that falls with the validation loss, by Keras' callback and the TensorFlow project's defaults."""
    patience = account.whole('lr_schedule.patience', 3, 1)
    factor = account.number('lr_schedule.factor', 0.5, 1e-6, 1 - 1e-6)
    least = account.number('lr_schedule.min_lr', RECIPE_ETA_MIN)
    account.carried('lr_schedule.type', "schedule='plateau' by val/loss, no warmup; each stage begins at its full rate")
    account.carried('lr_schedule.patience', f'plateau.patience={patience}, each epoch is validated')
    account.carried('lr_schedule.factor', f'plateau.factor={factor:g}')
    account.carried('lr_schedule.min_lr', f'plateau.min_lr={least:g}')
    account.note_all(DIFFERS, {f'lr_schedule.{name}': 'not used by a plateau, there either' for name in (
        'warmup_epochs', 'warmup_lr_factor')})
    return dict(schedule='plateau', warmup=0.0, ratio=Stage.warmup_ratio, least=RECIPE_ETA_MIN,
                plateau=dict(factor=factor, patience=patience, min_lr=least))


def _mixing(account: Account) -> dict[str, Any]:
    """Mosaic and mixup as there: mosaic where it is the type, none where augmentation is off."""
    on = account.flag(AUGMENTATION + 'enabled', True)
    kind = account.text(AUGMENTATION + 'enhance_type', None, ('mosaic', 'gridmask', 'none'))
    probs = {name: account.number(AUGMENTATION + name, default, 0, 1) for name, default in
             (('mosaic_prob', 0.3), ('mixup_prob', 0.1))}
    used = dict(mosaic_prob=probs['mosaic_prob'] if on and kind == 'mosaic' else 0.0,
                mixup_prob=probs['mixup_prob'] if on else 0.0)
    frozen = ', 0 while only the head trains'
    for name, value in used.items():
        off = ' (augmentation is off)' if not on else ' (enhance_type is not mosaic)'
        account.carried(AUGMENTATION + name, f'{name}={value:g}' + (frozen if value else off if probs[name] else ''))
    account.differs(AUGMENTATION + 'enabled', "flip, colours, resizing and shifting are those of the base's pipeline; "
                    'grey, aspect and grid mask are steps to add (docs/from_tensorflow.md)' if on else
                    'clean=True: no flip, no colours, no affine step')
    account.note(kind != 'gridmask', AUGMENTATION + 'enhance_type', 'mosaic_prob and mixup_prob of the stages',
                 "a step of the pipeline, dict(type='GridMask', prob=0.1)")
    return dict(used, clean=not on)


def wants_grid_mask(account: Account) -> bool:
    """Whether the file asks for the grid mask."""
    return (account.flag(AUGMENTATION + 'enabled', True)
            and account.values.get(AUGMENTATION + 'enhance_type') == 'gridmask')
