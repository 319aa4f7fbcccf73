"""From a YAML file of the TensorFlow project to what makes a config, with an account of every key."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError, require
from mgdet_plugin.common.name_lists import text_names
from mgdet_plugin.prepare.choices import Choice
from mgdet_plugin.prepare.project import Wish, scenario_of
from mgdet_plugin.prepare.recipe import Recipe, merged
from mgdet_plugin.prepare.start_from import Weights, look_into
from mgdet_plugin.prepare.tensorflow.account import Account, Entry
from mgdet_plugin.prepare.tensorflow.losses import LOSS_KEYS, loss_fields
from mgdet_plugin.prepare.tensorflow.measuring import MEASURING_KEYS, metric, note_measuring, test_cfg
from mgdet_plugin.prepare.tensorflow.model_file import MODEL_KEYS, ModelFile, input_size, read_model_file
from mgdet_plugin.prepare.tensorflow.running import (
    RUNNING_KEYS,
    early_stopping,
    multi_scale,
    note_running,
    optimizer,
)
from mgdet_plugin.prepare.tensorflow.settings_file import SettingsFile, read_settings
from mgdet_plugin.prepare.tensorflow.stages import STAGE_KEYS, epochs_from_nothing, stages_of, wants_grid_mask
from mgdet_plugin.weights.mapping.classes import COCO_CLASSES

_DATA = ('data.train_annotation', 'data.val_annotation', 'data.annotation', 'data.classes_path', 'weights_path',
         'resume.weights_path', 'resume.backbone_weights_path')
_KNOWN = (*_DATA, *MODEL_KEYS, *STAGE_KEYS, *LOSS_KEYS, *RUNNING_KEYS, *MEASURING_KEYS)


@dataclass(frozen=True)
class Converted:
    """What a file became.

    Attributes:
        settings: The file.
        wish: What to make; None of an inference file, which needs no config.
        recipe: What it settles.
        accounts: Name of a file -> what became of each of its keys.
    """

    settings: SettingsFile
    wish: Wish | None
    recipe: Recipe
    accounts: Mapping[str, tuple[Entry, ...]]


def convert(path: Path, **given: Any) -> Converted:
    """Read a file and say what becomes of it; nothing is written.

    Args:
        path: The YAML file.
        given: Fields of a :class:`Wish`; data, weights and classes count before those of the file.

    Raises:
        UserError: The file or one it names is missing, or a value is out of its range.
    """
    settings = read_settings(path)
    account = Account(path.name, settings.values)
    model = read_model_file(settings, account)
    made = dict(training=_training, evaluation=_evaluation, inference=_inference)[settings.kind]
    asked, recipe = made(settings, account, model, given)
    accounts = {str(path): account.finish(_KNOWN)}
    if model.account:
        accounts[model.account.where] = model.account.finish(MODEL_KEYS)
    return Converted(settings, asked, recipe, accounts)


def _training(settings: SettingsFile, account: Account, model: ModelFile,
              given: dict[str, Any]) -> tuple[Wish, Recipe]:
    weights = _weights(settings, account, given, ('resume.weights_path', 'resume.backbone_weights_path'))
    wish = _with_data(settings, account, model, {**given, 'weights': weights},
                      dict(train='data.train_annotation', val='data.val_annotation'))
    found = None if weights is None else look_into(weights)
    wish, scenario = _with_source(wish, found, False), scenario_of(found, wish.old)
    note_running(account)
    batch = account.whole('training.batch_size', 4, 1)
    account.carried('training.batch_size', f'train_dataloader.batch_size={batch}')
    nothing = scenario == 'nothing'
    head = dict(model.head or {}, loss=loss_fields(account, scenario))
    steps = (dict(type='GridMask', prob=0.1), ) if wants_grid_mask(account) else ()
    return wish, Recipe(
        network='model5', size=model.size, batch=Choice(batch, f'as in {account.where}'),
        interval=Choice(1, 'each epoch is validated, as there'),
        epochs=epochs_from_nothing(account) if nothing else None,
        stages=() if nothing else stages_of(account, scenario),
        model=merged(dict(bbox_head=head), multi_scale(account)), steps=steps,
        more=merged(optimizer(account, scenario), early_stopping(account, scenario)))


def _evaluation(settings: SettingsFile, account: Account, model: ModelFile,
                given: dict[str, Any]) -> tuple[Wish, Recipe]:
    require(given.get('old') is None, '--old is for training, and this is an evaluation', given.get('old'))
    weights = _weights(settings, account, given, ('weights_path', ))
    found = None if weights is None else look_into(weights)
    if found is None or found.part == 'backbone':
        raise UserError(f'{account.where} is of an evaluation, and weights_path names no weights of a whole model '
                        f'({weights}); give them by --weights')
    wish = _with_data(settings, account, model, {**given, 'weights': weights}, dict(test='data.annotation'))
    wish = _with_source(wish, found, True)
    note_measuring(account)
    batch = account.whole('evaluation.batch_size', 8, 1)
    account.carried('evaluation.batch_size', f'test_dataloader.batch_size={batch}')
    key = 'evaluation.max_images'
    images = None if account.values.get(key) is None else account.whole(key, 1, 1)
    account.carried(key, 'all pictures' if images is None else
                    f'test_dataloader.dataset.indices={images}, the first ones')
    own = input_size(account, 'evaluation.input_shape')
    return wish, Recipe(
        network='model5', size=own or model.size, test_batch=batch, images=images, metric=metric(account),
        model=dict(bbox_head=dict(model.head or {}), test_cfg=test_cfg(account, 'evaluation')), measures=True)


def _inference(settings: SettingsFile, account: Account, model: ModelFile,
               given: dict[str, Any]) -> tuple[None, Recipe]:
    _weights(settings, account, given, ('weights_path', ))
    note_measuring(account)
    return None, Recipe(size=input_size(account, 'input.input_shape') or model.size,
                        model=dict(test_cfg=test_cfg(account, 'detection')))


def _weights(settings: SettingsFile, account: Account, given: Mapping[str, Any], keys: tuple[str, ...]) -> Path | None:
    """The weights: those asked for, else those of the first key that names some."""
    named = {key: account.text(key) for key in keys}
    first = next(filter(None, named.values()), None)
    for key, name in named.items():
        if given.get('weights') is not None:
            account.note(name is None, key, 'names none', f'--weights {given["weights"]} is used')
        elif name is None:
            account.carried(key, 'names none')
        elif settings.kind == 'inference':
            account.differs(key, f'import_keras {name} CKPT, once')
        else:
            account.note(name == first, key, 'imported, class rows matched by name', f'{first} has all and is loaded')
    if given.get('weights') is not None:
        return Path(given['weights'])
    if first is None or settings.kind == 'inference':
        return None
    found = settings.find(first)
    if found is None:
        raise UserError(f'{account.where} names the weights {first}, which are not there (seen from '
                        f'{_seen(settings)}); put them there, or give them by --weights')
    return found


def _with_data(settings: SettingsFile, account: Account, model: ModelFile, given: dict[str, Any],
               keys: Mapping[str, str]) -> Wish:
    """The wish with the file's data and classes, where none are asked for."""
    classes = _classes(settings, account, model, given)
    out = given.get('out') or Path(f'{settings.path.name.partition(".")[0]}.py')
    if given.get('data') is not None:
        for key in keys.values():
            account.differs(key, f'{given["data"]} is used')
        return Wish(**{**given, 'out': out})
    sets: dict[str, Path] = {}
    for split, key in keys.items():
        name = account.text(key)
        found = settings.find(name) if name else None
        if name and found is None:
            raise UserError(f'{account.where}: {key} is {name}, which is not there (seen from {_seen(settings)}); put '
                            'it there, or give the data as DATA before --from-yaml')
        if found is not None and found not in sets.values():
            sets[split] = found
        same = found is None or sets.get(split) == found
        account.note(same, key, f'{split}.json, every box read back' if found else f'names none; {split} is taken from '
                     'train', 'the file of train; a val set is taken from it by the content of the pictures')
    if ('train' in keys and 'train' not in sets) or not sets:
        raise UserError(f'{account.where} names no annotation lines ({", ".join(keys.values())}); set them, or give '
                        'the data as DATA')
    if classes is None:
        raise UserError(f'{account.where}: lines number the classes, and data.classes_path names no file of names '
                        f'that is there (seen from {_seen(settings)}); set it, or give one by --classes')
    base = settings.folders[1:]
    images = given.get('images') or next((folder for folder in base if folder != Path.cwd() and any(
        path == folder / str(account.values[key]) for path, key in zip(sets.values(), keys.values()))), None)
    return Wish(**{**given, 'data': next(iter(sets.values())), 'out': out, 'classes': classes, 'images': images,
                   'sets': sets, 'title': settings.path.name})


def _with_source(wish: Wish, weights: Weights | None, measured: bool) -> Wish:
    """The wish with the names of the weights' classes where they are the file's own: as many, in the same order.

    The TensorFlow project has no names in its weights and goes by the order. 80 that are trained on are taken for
    COCO's.
    """
    if weights is None or not weights.num_classes or weights.classes or wish.source_classes or wish.classes is None:
        return wish
    names = text_names(wish.classes, str(wish.classes))
    same = len(names) == weights.num_classes
    if measured and not same:
        raise UserError(f'{weights.path} has {weights.num_classes} classes, and {wish.classes} names {len(names)}: '
                        'what is measured must be what they were trained on; give the right names by --classes')
    own = same and (measured or len(names) != COCO_CLASSES)
    return replace(wish, source_classes=str(wish.classes)) if own else wish


def _classes(settings: SettingsFile, account: Account, model: ModelFile, given: Mapping[str, Any]) -> Path | None:
    key = 'data.classes_path'
    asked = given.get('classes')
    name = account.text(key)
    found = settings.find(name) if name else None
    account.note(asked is None and given.get('data') is None, key, 'names of the classes, in this order',
                 f'--classes {asked} is used' if asked else 'the classes of the data are used')
    return Path(asked) if asked else found or model.classes


def _seen(settings: SettingsFile) -> str:
    return ', '.join(dict.fromkeys(str(folder.absolute()) for folder in settings.folders))

