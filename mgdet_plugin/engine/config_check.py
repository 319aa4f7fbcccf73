"""Names in a config held against the registries and classes they are looked up in, before anything is built."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import mmengine.registry as registries
import torch
from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry, init_default_scope
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.utils.data import DataLoader

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import nearest
from mgdet_plugin.compat.building import BuildError, building_from
from mgdet_plugin.datasets.formats.annotation_check import config_name

_PLACES = dict(
    model=('MODELS', 'TASK_UTILS'), tta_model=('MODELS', ), data_preprocessor=('MODELS', ), dataset=('DATASETS', ),
    datasets=('DATASETS', ), pipeline=('TRANSFORMS', ), switch_pipeline=('TRANSFORMS', ),
    transforms=('TRANSFORMS', ), tta_pipeline=('TRANSFORMS', ),
    sampler=('DATA_SAMPLERS', ), batch_sampler=('DATA_SAMPLERS', ), collate_fn=('FUNCTIONS', ),
    optim_wrapper=('OPTIM_WRAPPERS', ), optimizer=('OPTIMIZERS', ), param_scheduler=('PARAM_SCHEDULERS', ),
    val_evaluator=('METRICS', 'EVALUATOR'), test_evaluator=('METRICS', 'EVALUATOR'), evaluator=('METRICS', 'EVALUATOR'),
    metrics=('METRICS', ), default_hooks=('HOOKS', ), custom_hooks=('HOOKS', ), train_cfg=('LOOPS', ),
    val_cfg=('LOOPS', ), test_cfg=('LOOPS', ), visualizer=('VISUALIZERS', ), vis_backends=('VISBACKENDS', ),
    log_processor=('LOG_PROCESSORS', ), model_wrapper_cfg=('MODEL_WRAPPERS', ), init_cfg=('WEIGHT_INITIALIZERS', ))
"""Key of a config -> names of the registries in which the types at it and below it are."""
_RUN = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'optim_wrapper', 'param_scheduler', 'val_evaluator',
        'test_evaluator', 'default_hooks', 'custom_hooks', 'train_cfg', 'val_cfg', 'test_cfg', 'visualizer',
        'log_processor', 'model_wrapper_cfg')
"""What a run takes from a config beside its model; other keys are a person's own."""
_MANY = ('param_scheduler', 'val_evaluator', 'test_evaluator', 'custom_hooks')
_PACKAGES = dict(TensorboardVisBackend='tensorboard', WandbVisBackend='wandb', MLflowVisBackend='mlflow',
                 ClearMLVisBackend='clearml', NeptuneVisBackend='neptune', DVCLiveVisBackend='dvclive',
                 AimVisBackend='aim')
"""Where a run is shown -> what must be installed for it."""
_NUMBERS = (int, float, bool, int | None, float | None, int | float, 'int', 'float', 'bool', 'int | None',
            'float | None')
"""Annotations of numbers."""
_SIMILAR, _ALIKE = 0.6, 0.85  # of difflib
_TAKEN = {'type', '_scope_', '_delete_', 'name', 'constructor', 'paramwise_cfg', 'convert_to_iter_based', 'optimizer',
          'priority', 'num_batch_per_epoch'}
"""Keys that are taken out before a class gets the rest."""
_TYPES_ALONE = ('norm_cfg', 'act_cfg', 'conv_cfg', 'upsample_cfg', 'padding_cfg', 'init_cfg')
"""Keys of parts whose entries functions take out one by one."""
_FOREIGN = ('Albu', )
"""Types whose members are another library's."""
_FUNCTIONS = ('nms', 'nms_cfg', 'override')
"""Keys of parts whose type is in no registry."""


def check_parts(cfg: Config, *keys: str) -> None:
    """Refuse a config that lacks a part.

    Raises:
        UserError: It does.
    """
    lacking = [key for key in keys if not cfg.get(key)]
    if lacking:
        raise UserError(f'{config_name(cfg)} has no {" and no ".join(lacking)}; inherit a config that has, such as '
                        '_base_ = "mgdet_plugin::mgdet_nano_stage1.py"')


class _Fields(NamedTuple):
    """What a class takes: names, whether others as well, and which of the names are of numbers."""
    known: frozenset[str]
    any_field: bool
    numbers: frozenset[str]


@contextmanager
def checked(cfg: Config) -> Iterator[None]:
    """Check a config, then let the block build from it: what cannot be built is one line that names its place there.

    A model is held against registries and classes only where it cannot be built: mmdet's models take some of their
    types from elsewhere.

    Raises:
        UserError: A type that no registry has, or a field or value that its class does not take, and the nearest name.
    """
    _check_scope(cfg.get('default_scope') or 'mmdet')
    for key in ('model', *_RUN):
        part, many = cfg.get(key), key in _MANY
        if not (part is None or isinstance(part, Mapping) or (many and isinstance(part, (list, tuple)))):
            raise UserError(f'{key} must be a dict{" or a list of them" if many else ""}, got {part!r}')
        if key == 'model':
            _check_initial(part, key)
        else:
            _check_part(part, key, _registries(key, ()))
    _check_backends(cfg)
    _check_sampler(cfg)
    with building_from(cfg):
        for place in ('val_evaluator', 'test_evaluator'):  # their files are looked at with the dataset's
            _build(cfg.get(place), registries.METRICS, without=('ann_file', ))
        _build([each for each in (cfg.get('default_hooks') or {}).values() if each], registries.HOOKS)
        _build(cfg.get('custom_hooks'), registries.HOOKS)
        _build_optimizer(cfg.get('optim_wrapper') or {})
        try:
            yield
        except BuildError:
            _check_part(cfg.get('model'), 'model', _registries('model', ()))
            raise


def _build(parts: Any, registry: Registry, without: Collection[str] = (), **fields: Any) -> None:
    """Build parts of a registry, ``without`` some fields and with others, so that their classes can refuse values."""
    for part in [parts] if isinstance(parts, Mapping) else parts or ():
        cls = _found(part.get('type'), (registry, ))
        # an evaluator around metrics is of another registry; hooks that draw ask for the run's visualizer
        needs = inspect.signature(cls).parameters if cls is not None and without else {}
        if cls is not None and 'Visualization' not in getattr(cls, '__name__', '') and not any(
                each in needs and needs[each].default is inspect.Parameter.empty for each in without):
            registry.build({key: value for key, value in part.items() if key not in ('priority', *without)} | fields)


def _check_scope(scope: str) -> None:
    """Enter a scope, having refused one that no library has registered."""
    init_default_scope(scope)
    scopes = {registries.MODELS.scope, *registries.MODELS.children}
    if scope not in scopes:
        raise UserError(f'default_scope is {scope!r}, and nothing is registered in a scope of this name'
                        f'{nearest(scope, scopes)}')


def _build_optimizer(wrapper: Mapping[str, Any]) -> None:
    """Build the optimizer and its wrapper for one weight, and clip its gradient.

    Raises:
        UserError: A value is refused, with its key.
    """
    if not isinstance(wrapper.get('optimizer'), Mapping):
        return
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    _build(wrapper['optimizer'], registries.OPTIMIZERS, params=[weight])
    if wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
        return
    fields = {key: value for key, value in wrapper.items() if key in ('clip_grad', 'accumulative_counts')}
    try:
        built = OptimWrapper(torch.optim.SGD([weight], lr=0.1), **fields)
        if built.clip_grad_kwargs:
            built._clip_grad()
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f'optim_wrapper cannot be built with {fields}: {error}; clip_grad holds what clip_grad_norm_ '
                        'of torch takes, as in dict(max_norm=35), accumulative_counts a whole number from 1') from error


def _check_sampler(cfg: Config) -> None:
    """Refuse a sampler without an end in a loop that waits for it."""
    sampler = _found(((cfg.get('train_dataloader') or {}).get('sampler') or {}).get('type'), [registries.DATA_SAMPLERS])
    loop = _found((cfg.get('train_cfg') or {}).get('type') or 'EpochBasedTrainLoop', [registries.LOOPS])
    endless = isinstance(sampler, type) and issubclass(sampler, (InfiniteSampler, MultiSourceSampler))
    if endless and isinstance(loop, type) and issubclass(loop, EpochBasedTrainLoop):
        raise UserError(f'train_dataloader.sampler is {sampler.__name__}, which has no end, and {loop.__name__} goes '
                        "by epochs: an epoch would never end; set sampler=dict(type='DefaultSampler', shuffle=True)")


def _check_backends(cfg: Config) -> None:
    """Refuse a tracker whose package is not installed: it would be missed once the run has begun."""
    visualizer = cfg.get('visualizer') or {}
    for index, each in enumerate(visualizer.get('vis_backends') or ()):
        kind = str(each.get('type')).rpartition('.')[2]
        if kind in _PACKAGES and find_spec(_PACKAGES[kind]) is None:
            raise UserError(f'visualizer.vis_backends[{index}].type is {kind}, which needs {_PACKAGES[kind]}: pip '
                            f'install {_PACKAGES[kind]}, or use LocalVisBackend')


def _registries(key: str, around: Sequence[Registry]) -> Sequence[Registry]:
    """The registries of a part at a key, ``around`` where the key says nothing of it."""
    return [getattr(registries, name) for name in _PLACES[key]] if key in _PLACES else around


def _check_part(part: Any, path: str, around: Sequence[Registry]) -> None:
    """Check a part of a config and all in it; ``around`` are the registries of its place."""
    in_model = registries.MODELS in around
    if isinstance(part, (list, tuple)):
        for index, each in enumerate(part):
            if around and not in_model and (not isinstance(each, (Mapping, list, tuple)) or (
                    isinstance(each, Mapping) and not each.get('type'))):
                raise UserError(f'{path}[{index}] must be a dict with a type, got {each!r}')
            _check_part(each, f'{path}[{index}]', around)
    if not isinstance(part, Mapping):
        return
    key = path.rpartition('.')[2].partition('[')[0]
    if key.endswith('dataloader'):
        _check_fields(part, path, 'a dataloader', parameters(DataLoader))
        if not isinstance(part.get('dataset'), Mapping):
            raise UserError(f'{path}.dataset must be a dict with a type, got {part.get("dataset")!r}')
    if around:
        _check_type(part, path, around, key)
    if part.get('type') in _FOREIGN:
        return
    for name, each in part.items():
        if in_model:
            own = around if name not in ('init_cfg', 'data_preprocessor') else _registries(name, ())
        elif around and 'type' not in part:  # a group: its members are of one registry, by whatever names
            own = around
            if key == 'default_hooks' and each is not None and not (isinstance(each, Mapping) and each.get('type')):
                raise UserError(f'{path}.{name} must be a dict with a type, or None, got {each!r}')
        else:
            own = _registries(name, ())
        _check_part(each, f'{path}.{name}', own)


def _check_initial(part: Any, path: str) -> None:
    """Check the ``init_cfg`` of a model's parts, which are looked up when weights are drawn."""
    for key, each in part.items() if isinstance(part, Mapping) else enumerate(part or ()):
        place = f'{path}.{key}' if isinstance(part, Mapping) else f'{path}[{key}]'
        if key == 'init_cfg':
            _check_part(each, place, _registries('init_cfg', ()))
        elif isinstance(each, (Mapping, list, tuple)):
            _check_initial(each, place)


def _check_type(part: Mapping[str, Any], path: str, around: Sequence[Registry], key: str) -> None:
    """Refuse a type that is not in the registries of its place, and fields its class does not take."""
    name = part.get('type', 'OptimWrapper' if path == 'optim_wrapper' and 'optimizer' in part else None)
    if name is None or key in _FUNCTIONS:
        return
    cls = _found(name, around)
    if cls is None:
        there = {each for registry in around for each in _names(registry)}
        raise UserError(f'{path}.type is {name!r}, and no {" or ".join(each.name for each in around)} of this name is '
                        f'registered{nearest(str(name), there)}; one of your own is registered by custom_imports')
    if key not in _TYPES_ALONE:
        _check_fields(part, path, str(name), parameters(cls))


def _check_fields(part: Mapping[str, Any], path: str, name: str, takes: _Fields) -> None:
    """Refuse a field that a class does not take; where it takes any, one that is like another it has a name for."""
    known, any_field, numbers = takes
    for field, value in part.items():
        if field in numbers and isinstance(value, (str, Mapping)):
            raise UserError(f'{path}.{field}: {name} takes a number, got {value!r}')
        meant = nearest(field, known, _ALIKE if any_field else _SIMILAR)
        if field not in known and field not in _TAKEN and (meant or not any_field):
            raise UserError(f'{path}.{field}: {name} takes no {field}{meant}; it takes {", ".join(sorted(known))}')


def _found(kind: Any, around: Sequence[Registry]) -> Any:
    """What a type of a config names in the first registry that has it; a class stands for itself."""
    if not isinstance(kind, str):
        return kind
    for registry in around:
        with registry.switch_scope_and_registry(None) as scoped:
            try:
                found = scoped.get(kind)
            except RuntimeError:  # a dotted name that leads nowhere
                found = None
        if callable(found):
            return found
    return None


def _names(registry: Registry) -> Iterator[str]:
    """All names in a registry as the config's scope sees it."""
    with registry.switch_scope_and_registry(None) as scoped:
        while scoped is not None:
            yield from scoped.module_dict
            scoped = scoped.parent


@cache
def parameters(cls: Callable[..., Any]) -> _Fields:
    """What a class or function takes, and hands on to its parents."""
    known: set[str] = set()
    numbers: set[str] = set()
    inits = [vars(each)['__init__'] for each in getattr(cls, '__mro__', ()) if '__init__' in vars(each)] or [cls]
    for init in inits:
        if init is object.__init__:
            break
        try:
            found = inspect.signature(init).parameters.values()
        except ValueError:  # written in C
            break
        known |= {each.name for each in found if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
        numbers |= {each.name for each in found if each.annotation in _NUMBERS}
        if not any(each.kind is each.VAR_KEYWORD for each in found):
            return _Fields(frozenset(known - {'self'}), False, frozenset(numbers))
    return _Fields(frozenset(known - {'self'}), True, frozenset(numbers))
