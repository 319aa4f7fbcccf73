"""What weights reach on held-back images: before and after fine-tuning, and the loss a run starts from.

Neither torch nor mmdet is imported before it is known that the files to evaluate are there.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.metric_names import at_half, kind_of, mean_aps
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path

AS_GIVEN, RANDOM_CLASSES, RANDOM_ROWS = 'as given', 'class rows random', 'all prediction rows random'


def before_after(configs: Mapping[str, str], before: str, after: str, device: str | None = None,
                 say: Callable[[str], object] = lambda line: print(line, file=sys.stderr)) -> list[dict[str, Any]]:
    """Evaluate two checkpoints of one model on the test sets of several configs.

    Args:
        configs: Name of a domain -> path of a config with its test set; the model is that of the first.
        before: Path of the weights the run started from.
        after: Path of the weights it ended with.
        device: Where to compute. Default: the GPU where there is one.
        say: Takes what a person should know of weights that fit, a line each. Default: to standard error.

    Returns:
        A row a domain: ``test_set``, its name; ``images``, how many it has; ``metrics``, names of the mean APs its
        evaluator gives; ``before`` and ``after``, name of a metric or loss -> what the checkpoint reaches. CocoMetric
        gives none where nothing is detected.

    Raises:
        UserError: A config, dataset or checkpoint is missing or does not fit.
    """
    paths = {name: str(config_path(config)) for name, config in configs.items()}
    for path in (before, after):
        check_weights_path(path, next(iter(paths.values())))
    from mmengine.config import Config

    from mgdet_plugin.engine.checkpoint_check import compare_stored, read_weights
    from mgdet_plugin.runs.held_out import HeldOut
    cfgs = {name: Config.fromfile(path) for name, path in paths.items()}
    tests = HeldOut.of_tests(cfgs, device)
    check_same_classes({paths[name]: loader.dataset for name, (loader, _) in tests.domains.items()})
    for path in dict.fromkeys((before, after)):
        content = read_weights(path, tests.cfg)[1]
        for line in dict.fromkeys(line for cfg in cfgs.values() for line in compare_stored(path, content, cfg, 'test')):
            say(line)
    states = [tests.read(path) for path in (before, after)]
    first, last = (tests.measure(state) for state in states)
    return [dict(test_set=name, images=len(loader.dataset),  # type: ignore[arg-type]
                 metrics=tests.mean_aps(name), before=first[name], after=last[name])
            for name, (loader, _) in tests.domains.items()]


def check_same_classes(datasets: Mapping[str, Any]) -> None:
    """Refuse test sets that one model cannot be measured on, since its classes go by their place.

    Args:
        datasets: Path of a config -> its test set.

    Raises:
        UserError: One has other classes than the first, in number or in order.
    """
    (first, ours), *others = ((path, dataset.metainfo['classes']) for path, dataset in datasets.items())
    for path, theirs in others:
        if len(theirs) != len(ours) or (set(theirs) == set(ours) and tuple(theirs) != tuple(ours)):
            raise UserError(f'the test set of {path} has the classes {", ".join(theirs)}, that of {first} has '
                            f'{", ".join(ours)}: a model is compared on sets with the same classes in the same order; '
                            f'list metainfo.classes of {path} so')


def rows_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table for a person; a metric of a model that detects nothing counts as 0."""
    found = [{**dict.fromkeys(row.get('metrics', ())), **row['before'], **row['after']} for row in rows]
    figures = list(dict.fromkeys(name for each in found for name in each if 'loss' not in name))
    means = mean_aps(figures)
    names = list(dict.fromkeys(each for name in means for each in (name, at_half(name, figures)) if each)) or figures
    lines = [('test set', 'images', *(names if len(means) != 1 else ('AP', 'AP50')[:len(names)]))]
    for row, given in zip(rows, found):
        kinds = set(map(kind_of, given))
        lines.append((row['test_set'], str(row['images']), *(
            f'{row["before"].get(name, 0.0):.3f} -> {row["after"].get(name, 0.0):.3f}' if kind_of(name) in kinds else
            '-' for name in names)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = ['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return '\n'.join([*table, *([f'AP is {means[0]}'] if len(means) == 1 else [])])


def first_losses(config: str, checkpoint: str,
                 cfg_options: Mapping[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """Every term of the validation loss of a checkpoint, of it with random class rows, and with all rows random.

    Random rows are drawn as an import draws them: N(0, 0.01), zero bias. The loss is the one every validation measures.

    Args:
        config: Path of a config; its validation set is used as it is validated on.
        checkpoint: Path of the weights.
        cfg_options: Dotted keys of the config to set.

    Returns:
        ``as given``, ``class rows random``, ``all prediction rows random`` -> term, or their sum ``loss`` -> per image.

    Raises:
        UserError: Config, dataset or weights are missing or do not fit.
    """
    config = str(config_path(config))
    check_weights_path(checkpoint, config)
    from mmengine.config import Config

    from mgdet_plugin.runs.held_out import HeldOut, prepare_data, random_rows
    from mgdet_plugin.weights.mapping.architecture import BOX_ROWS
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(cfg_options or {}))
    prepare_data(cfg, 'val')
    images = HeldOut(cfg, dict(val=dict(dataloader=cfg.val_dataloader)))
    state = images.read(checkpoint)
    anchors = [len(scale) for scale in cfg.model.bbox_head.anchors]
    states = {AS_GIVEN: state, RANDOM_CLASSES: random_rows(state, [BOX_ROWS + count for count in anchors]),
              RANDOM_ROWS: random_rows(state, [0] * len(anchors))}
    losses = {name: images.measure(weights)['val'] for name, weights in states.items()}
    if not losses[AS_GIVEN]:
        raise UserError('the validation set has no images; there is no loss to measure')
    return {name: dict(sorted(terms.items(), key=lambda term: term[0] == 'loss')) for name, terms in losses.items()}
