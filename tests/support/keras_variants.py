"""Variants of recorded Keras files: training wrappers, nested models, classifiers, other storage, other names."""
from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from tests.support.keras_files import Tree, renamed, root_of, with_optimizer

Spec = dict[str, Any]


def is_vars(source: Tree) -> bool:
    """Whether the tree is of the ``layers/<class>/vars`` layout."""
    return '/layers' in source['groups']


def array(shape: list[int], layer: str, kind: str = 'bias') -> Spec:
    """An array of a tree; ``step`` makes it an integer."""
    return dict(shape=shape, layer=layer, kind=kind)


def with_layer(source: Tree, name: str, weights: dict[str, Spec], at: int | None = None) -> Tree:
    """The tree with one more layer.

    Args:
        source: The tree.
        name: Name of the layer; a layer of its own class.
        weights: Weight name -> array, stored by index in the ``vars`` layout.
        at: Place in ``layer_names``, the end by default.
    """
    changed = deepcopy(source)
    if is_vars(source):
        changed['groups'][f'/layers/{name}/vars'] = dict(name=name)
        changed['datasets'] |= {f'/layers/{name}/vars/{index}': spec for index, spec in enumerate(weights.values())}
        return changed
    root = root_of(source)
    names = changed['groups'][root or '/']['layer_names']
    names.insert(len(names) if at is None else at, name)
    changed['groups'][f'{root}/{name}'] = dict(weight_names=[f'{name}/{weight}:0' for weight in weights])
    changed['datasets'] |= {f'{root}/{name}/{name}/{weight}:0': spec for weight, spec in weights.items()}
    return changed


def training(source: Tree) -> Tree:
    """The tree as a training model writes it: inputs for targets, a loss layer with state of its own, optimizer."""
    for index in (2, 3, 4):
        source = with_layer(source, f'input_{index}', {}, at=index)
    loss = dict(scale=array([], 'loss'), seen=array([], 'loss', 'step'), counts=array([3], 'loss', 'step'))
    return with_optimizer(with_layer(source, 'loss_layer', loss))


def nested(source: Tree, frozen: Callable[[str], bool] = lambda layer: False) -> Tree:
    """The tree of a training model that holds the recorded one as a layer.

    Args:
        source: The tree.
        frozen: Whether a layer, by name, is frozen; matters to the legacy layout, which lists trainable weights first.
    """
    if is_vars(source):
        changed: Tree = dict(groups={'/layers': {}, '/layers/input_layer/vars': dict(name='input_layer')}, datasets={})
        for section in ('groups', 'datasets'):
            changed[section] |= {f'/layers/functional{path}': deepcopy(spec) for path, spec in source[section].items()
                                 if path != '/'}
        return changed
    root = root_of(source)
    specs = [(name, weight, source['datasets'][f'{root}/{name}/{weight}'])
             for name in source['groups'][root or '/']['layer_names']
             for weight in source['groups'][f'{root}/{name}']['weight_names']]
    specs.sort(key=lambda item: 'moving' in item[1] or frozen(item[0]))  # stable: the order of layers stays
    outer = {key: value for key, value in source['groups'][root or '/'].items() if key != 'layer_names'}
    groups = {root or '/': dict(outer, layer_names=['input_1', 'detector', 'loss']),
              f'{root}/input_1': dict(weight_names=[]), f'{root}/loss': dict(weight_names=[]),
              f'{root}/detector': dict(weight_names=[weight for _, weight, _ in specs])}
    return dict(groups=groups, datasets={f'{root}/detector/{weight}': dict(spec) for _, weight, spec in specs})


def with_classifier(source: Tree, kernel: list[int]) -> Tree:
    """The tree of a backbone with pooling and a classifier on top: a dense layer or a 1x1 convolution with bias."""
    weights = dict(kernel=array(kernel, 'top', 'kernel'), bias=array(kernel[-1:], 'top'))
    pooled = with_layer(source, 'global_average_pooling2d', {})
    return with_layer(pooled, 'dense' if len(kernel) == 2 else 'conv2d_52', weights)


def stored_as(source: Tree, dtypes: tuple[str, ...]) -> Tree:
    """The tree with its arrays stored as the given types in turn."""
    changed = deepcopy(source)
    for index, spec in enumerate(changed['datasets'].values()):
        spec['stored'] = dtypes[index % len(dtypes)]
    return changed


def chunked_names(source: Tree, size: int) -> Tree:
    """The tree with every list of names over ``size`` cut, as Keras does with attributes over 64 KB."""
    changed = deepcopy(source)
    for attrs in changed['groups'].values():
        for key in ('layer_names', 'weight_names'):
            if len(attrs.get(key, [])) > size:
                names = attrs.pop(key)
                attrs |= {f'{key}{index}': names[start:start + size]
                          for index, start in enumerate(range(0, len(names), size))}
    return changed


def scoped(source: Tree, scope: str) -> Tree:
    """The legacy tree with weight names inside a scope: ``scope/conv2d/kernel:0``."""
    changed: Tree = dict(groups=deepcopy(source['groups']), datasets={})
    for path, attrs in changed['groups'].items():
        for weight in attrs.get('weight_names', []):
            changed['datasets'][f'{path}/{scope}/{weight}'] = dict(source['datasets'][f'{path}/{weight}'])
        if 'weight_names' in attrs:
            attrs['weight_names'] = [f'{scope}/{weight}' for weight in attrs['weight_names']]
    return changed


def slashed(source: Tree) -> Tree:
    """The tree with layer names that contain a slash."""
    return renamed(source, lambda name: f'net/{name}' if name.startswith(('conv2d', 'batch', 'predict')) else name)


def without_names(source: Tree) -> Tree:
    """The ``vars`` tree as Keras 2.15 and the first versions of Keras 3 write it."""
    changed = deepcopy(source)
    for attrs in changed['groups'].values():
        attrs.pop('name', None)
    return changed


def unscoped(source: Tree) -> Tree:
    """The legacy tree as the first versions of Keras 3 write it: ``kernel`` in place of ``conv2d/kernel``."""
    changed: Tree = dict(groups=deepcopy(source['groups']), datasets={})
    for path, attrs in changed['groups'].items():
        weights = attrs.get('weight_names', [])
        attrs |= dict(weight_names=[weight.rpartition('/')[2] for weight in weights]) if weights else {}
        for weight in weights:
            changed['datasets'][f'{path}/{weight.rpartition("/")[2]}'] = dict(source['datasets'][f'{path}/{weight}'])
    return changed


def moved_layers(source: Tree, top: str) -> Tree:
    """The ``vars`` tree with another beginning of all paths in place of ``/layers/``."""
    return {section: {path.replace('/layers/', top, 1): deepcopy(spec) for path, spec in content.items()}
            for section, content in source.items()}
