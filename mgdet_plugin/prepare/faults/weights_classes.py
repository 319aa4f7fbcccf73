"""The classes of data against those that weights were trained on, by name."""
from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config

from mgdet_plugin.common.checkpoints import load_checkpoint, new_classes_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.weights_path import check_weights_path
from mgdet_plugin.datasets.formats.annotation_check import config_name
from mgdet_plugin.prepare.faults.findings import ERROR, NOTE, WARNING, Example, Finding
from mgdet_plugin.weights.mapping.class_names import listed, match_classes

_AGAIN = 'import the weights again with --classes {}: rows of classes known by name are kept, others drawn anew'


def weights_findings(cfg: Config, classes: tuple[str, ...], named_by: str | None = None) -> Iterator[Finding]:
    """Hold the names stored in ``cfg.load_from`` against the classes; nothing where it is not set or remote.

    Args:
        cfg: The config.
        classes: Those of the data, in the order of the labels.
        named_by: What an import takes them from. Default: the config.
    """
    path = str(cfg.get('load_from') or '')
    if not path or '://' in path:
        return
    try:
        check_weights_path(path, config_name(cfg))
        content = load_checkpoint(path, mmap=True)[1]
        new = new_classes_of(content, path)
    except UserError as error:
        yield Finding('weights', NOTE, 1, 'the names of the classes are not held against those of the weights',
                      'training needs the weights, looking at data does not', [Example('', text=str(error))])
        return
    meta = content.get('meta')
    stored = meta.get('dataset_meta') if isinstance(meta, dict) else None
    names = stored.get('classes') if isinstance(stored, dict) else None
    if not names:
        yield Finding('weights', NOTE, 1, f'{path} does not say what its classes are called',
                      'see that its class rows are those of your classes, in their order')
        return
    yield from name_findings(path, tuple(map(str, names)), classes, named_by or config_name(cfg),
                             tuple(map(str, new)))


def name_findings(path: str, theirs: tuple[str, ...], ours: tuple[str, ...], named_by: str,
                  new: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Hold the classes of weights against those of data: a class row means a class by its place alone.

    Args:
        path: The weights.
        theirs: Their classes, in the order of the rows.
        ours: Those of the data, in the order of the labels.
        named_by: What the command that imports anew takes ours from.
        new: Classes of theirs that they have not learnt.
    """
    if theirs != ours:
        known = match_classes(ours, theirs)
        moved = [f'{name} (row {row}, here {place})' for place, (name, row) in enumerate(zip(ours, known.sources))
                 if row is not None and row != place]
        unknown = [name for name, row in zip(ours, known.sources) if row is None]
        what = [f'{path} knows {len(theirs)} classes, the data have {len(ours)}'] if len(ours) != len(theirs) else []
        what += [f'in another place: {listed(moved)}'] if moved else []
        what += [f'not known by name: {listed(unknown)}'] if unknown else []
        wrong = bool(moved) or len(ours) != len(theirs)
        if what:
            yield Finding('weights_classes', ERROR if wrong else WARNING, len(moved) + len(unknown) or 1,
                          f'the classes are not those of the weights: {"; ".join(what)}', _AGAIN.format(named_by))
    if new:
        yield Finding('unlearnt_class', NOTE, len(new), f'the weights have rows for {len(new)} classes and have not '
                      f'learnt them: {listed(new)}', 'nothing: that is what the training is for')
