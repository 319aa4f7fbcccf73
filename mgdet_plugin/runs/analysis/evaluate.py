"""Evaluate weights on labelled sets and write a page about it: ``mgdet evaluate``, and at the end of a staged run."""
from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgdet_plugin.common.errors import UserError, require
from mgdet_plugin.common.files import check_folder, make_folder, write_together
from mgdet_plugin.common.resources import command, config_path, shown_config
from mgdet_plugin.common.weights_path import check_weights_path

if TYPE_CHECKING:  # what is missing is told without importing mmengine
    from mmengine.config import Config

    from mgdet_plugin.runs.analysis.evaluation_record import Evaluation

PAGE, RECORD = 'evaluation.html', 'evaluation.json'
FOLDER = 'evaluation'  # beside the weights
SPLITS = ('test', 'val')
NEW, OLD = 'new domain', 'old domain'
SWITCH = 'evaluate'  # key of a config: False leaves the page at a run's end out


def evaluate(config: str, checkpoint: str, before: str | None = None, old: str | None = None, out: str | None = None,
             split: str = 'test', cfg_options: Mapping[str, Any] | None = None) -> tuple[Evaluation, list[Path]]:
    """Evaluate weights on a config's set and write page, figures and numbers.

    Args:
        config: Path or name of a config of any detector of mmdet.
        checkpoint: The weights.
        before: Other weights of the model, such as those it was fine-tuned from, to be shown beside.
        old: A config whose set is of the domain that the weights come from, with the same classes.
        out: Folder to write to. Default, beside the checkpoint: ``evaluation``, or ``evaluation_test`` of a test set.
        split: Which sets: 'test' or 'val'.
        cfg_options: Dotted keys to set in both configs.

    Returns:
        What was measured, and the paths written, the page last.

    Raises:
        UserError: A config, set or file of weights is missing or does not fit, or nothing is labelled.
    """
    require(split in SPLITS, 'the split must be test or val', split)
    paths = {name: config_path(each) for name, each in ((NEW, config), (OLD, old)) if each}
    weights = {name: each for name, each in (('before', before), ('after', checkpoint)) if each}
    for each in weights.values():
        check_weights_path(each, str(paths[NEW]))
    own = FOLDER if split == 'val' else f'{FOLDER}_{split}'  # a run's page is of its validation set
    folder = check_folder(Path(out) if out else Path(checkpoint).parent / own)
    from mmengine.config import Config
    cfgs = {name: Config.fromfile(path) for name, path in paths.items()}
    for name, cfg in cfgs.items():
        cfg.merge_from_dict(dict(cfg_options or {}))
        lacking = [key for key in ('model', f'{split}_dataloader', f'{split}_evaluator') if not cfg.get(key)]
        if lacking:
            raise UserError(f'{paths[name]} has no {" and no ".join(lacking)}; give a config that has'
                            f'{", or another --split" if "model" not in lacking else ""}')
        cfg.test_dataloader, cfg.test_evaluator = cfg[f'{split}_dataloader'], cfg[f'{split}_evaluator']
    names = {NEW: NEW if old else f'{split} set', OLD: OLD}
    shown = {names[name]: f'{split} set of {shown_config(path)}' for name, path in paths.items()}
    evaluation = measure({names[name]: cfg for name, cfg in cfgs.items()}, weights, paths[NEW].stem, shown)
    return evaluation, write(evaluation, folder)


def evaluate_run(words: Sequence[str],
                 say: Callable[[str], object] = lambda line: print(line, file=sys.stderr), renew: bool = True) -> None:
    """Write the page of a staged run that ended into ``evaluation`` of its folder, of its validation sets.

    The best weights are held against those the run started from, on the new images and, where the run followed it, on
    the old domain. Says where the page is, or in one line why there is none: a run that ended well ended well. Nothing
    is done for a run without stages, validation or best weights, or with ``evaluate=False``.

    Args:
        words: The run's command line, for mmdet's train script.
        say: Takes the line.
        renew: Whether to write the page anew where there is one.
    """
    from mgdet_plugin.engine.mmdet_scripts import is_first_rank, parse_like_mmdet
    args, cfg = parse_like_mmdet('train', words)
    folder = Path(cfg.work_dir)
    best = folder / 'best.pth'
    asked = cfg.get(SWITCH, True) and cfg.get('stages') and cfg.get('val_dataloader') and cfg.get('val_evaluator')
    if not asked or not best.is_file() or not is_first_rank(args.launcher) or (
            not renew and (folder / FOLDER / PAGE).is_file()):
        return
    say(f'drawing what {best} gets right and wrong into {folder / FOLDER} ({SWITCH}=False in the config leaves it out)')
    try:
        say(f'what {best} detects: {_write_run(cfg, folder, best)}')
    except Exception as error:
        said = ' '.join(str(error).split()) or type(error).__name__
        again = command('evaluate', args.config, best, '--split', 'val')
        say(f'warning: no evaluation was written: {said}; {again} tries again, {SWITCH}=False in the config leaves '
            'it out')


def _write_run(cfg: Config, folder: Path, best: Path) -> Path:
    """Measure and write; the page's path."""
    from mgdet_plugin.keep.start_weights import START
    given = cfg.get('load_from')
    start = next((each for each in (folder / START, Path(str(given))) if given and each.is_file()), None)
    weights = {name: str(each) for name, each in (('before', start), ('after', best)) if each is not None}
    sets, shown = {NEW: cfg}, {NEW: 'validation set of the run'}
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    followed, said = _old_set(cfg, folder)
    if followed is not None:
        sets[OLD], shown[OLD] = followed, said
    found = measure(sets, weights, folder.resolve().name, shown, say=len)  # the run has said it at its start
    return write(found, folder / FOLDER)[-1]


def _old_set(cfg: Config, folder: Path) -> tuple[Config | None, str]:
    """The old domain that a run followed as a config with a test set, and what its truth is."""
    from mmengine.config import Config

    from mgdet_plugin.engine.old_pictures import HELD_OUT_RECORD, held_out_set
    from mgdet_plugin.engine.preflight import other_sets
    from mgdet_plugin.plan.keeping import OLD_SET
    others, said = other_sets(cfg), 'labelled set that the run followed'
    held_out = folder / HELD_OUT_RECORD
    if f'{OLD_SET}_dataloader' in others:
        loader, evaluator = others[f'{OLD_SET}_dataloader'], others[f'{OLD_SET}_evaluator']
    elif cfg.get('keep') and held_out.is_file():
        names = [each['name'] for each in json.loads(held_out.read_text())['categories']]
        loader, evaluator = held_out_set(cfg.val_dataloader, held_out, names)
        said = 'old images held out; their truth is what the start weights saw in them'
    else:
        return None, ''
    old = copy.deepcopy(cfg._cfg_dict) | dict(test_dataloader=loader, test_evaluator=evaluator)
    return Config(old, filename=cfg.filename), said


def measure(cfgs: Mapping[str, Config], weights: Mapping[str, str], title: str,
            sources: Mapping[str, str] | None = None,
            say: Callable[[str], object] = lambda line: print(line, file=sys.stderr)) -> Evaluation:
    """Let weights look at test sets and measure what they find.

    Args:
        cfgs: Name of a set -> config with it; the model is that of the first.
        weights: 'before' and 'after', or 'after' alone -> path.
        title: What the evaluation is called.
        sources: Name of a set -> where it comes from, for a person.
        say: Takes what a person should know of weights that fit, a line each. Default: to standard error.

    Raises:
        UserError: A set or weights are missing or do not fit, or nothing is labelled.
    """
    from mgdet_plugin.engine.checkpoint_check import compare_stored, read_weights
    from mgdet_plugin.engine.config_check import checked
    from mgdet_plugin.runs.analysis.analysis import analyse
    from mgdet_plugin.runs.analysis.collect import collect
    from mgdet_plugin.runs.analysis.evaluation_record import Evaluation
    from mgdet_plugin.runs.evaluation import check_same_classes
    from mgdet_plugin.runs.held_out import HeldOut, quiet
    with ExitStack() as stack:
        for cfg in cfgs.values():
            stack.enter_context(checked(cfg))
        sets = HeldOut.of_tests(cfgs)
        check_same_classes({name: loader.dataset for name, (loader, _) in sets.domains.items()})
        for path in weights.values():
            content = read_weights(path, sets.cfg)[1]
            for line in dict.fromkeys(each for cfg in cfgs.values() for each in compare_stored(path, content, cfg,
                                                                                            'test')):
                say(line)
        states = {name: sets.read(path) for name, path in weights.items()}
        found: dict[str, dict[str, Any]] = {domain: {} for domain in cfgs}
        for name, state in states.items():
            sets.model.load_state_dict(state, strict=True)
            for domain, (loader, evaluator) in sets.domains.items():
                with quiet():
                    results = collect(sets.model, loader, evaluator, domain)
                dataset: Any = loader.dataset
                found[domain][name] = analyse(results, dataset.metainfo['classes'])
    named = {name if len(weights) > 1 else 'weights': path for name, path in weights.items()}
    return Evaluation(title, found, named | dict(sources or {}))


def write(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the page, every figure as PNG and SVG, every number as JSON and CSV, all or none; the page last."""
    from mgdet_plugin.runs.analysis.analysis_plots import draw_analysis
    from mgdet_plugin.runs.analysis.evaluation_page import evaluation_page
    from mgdet_plugin.runs.analysis.evaluation_record import as_csv, tables
    from mgdet_plugin.runs.run_axes import png, svg
    make_folder(folder)
    rows = tables(evaluation)
    figures = draw_analysis(evaluation)
    images = {name: png(figure) for name, figure in figures.items()}
    contents = {folder / f'{name}.csv': as_csv(each).encode() for name, each in rows.items()}
    for name, figure in figures.items():
        contents |= {folder / f'{name}.svg': svg(figure), folder / f'{name}.png': images[name]}
    record = dict(title=evaluation.title, sources=evaluation.sources, **rows)
    contents[folder / RECORD] = json.dumps(record, indent=1, allow_nan=False).encode()
    contents[folder / PAGE] = evaluation_page(evaluation, rows, images).encode()
    write_together({path: methodcaller('write', content) for path, content in contents.items()})
    return list(contents)


def evaluation_text(evaluation: Evaluation) -> str:
    """What was measured, in a few lines for a person."""
    from mgdet_plugin.runs.analysis.evaluation_page import number, remarks
    from mgdet_plugin.runs.analysis.evaluation_record import tables
    columns = ('domain', *(['weights'] if evaluation.is_compared else []), 'images', 'AP', 'AP50', 'AP75', 'best_f1',
               'threshold')
    lines = [('set', *columns[1:-2], 'best F1', 'at score'),
             *(tuple(number(row[key]) for key in columns) for row in tables(evaluation)['summary'])]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join(['  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
                     + remarks(evaluation))
