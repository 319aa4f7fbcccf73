"""From annotations of any format to COCO files, fit weights and a config that trains: nothing or all of it."""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import check_destination, write_together
from mgdet_plugin.common.name_lists import text_names
from mgdet_plugin.common.resources import command
from mgdet_plugin.datasets.formats.dataset_report import number_of, some
from mgdet_plugin.datasets.old_images import pictures_below
from mgdet_plugin.datasets.sources.annotated import Hints, Picture, split_of
from mgdet_plugin.datasets.sources.find import read_annotated
from mgdet_plugin.datasets.sources.lines import read_sets
from mgdet_plugin.prepare.choices import Scenario, choose
from mgdet_plugin.prepare.coco_writing import pictures_root, write_coco
from mgdet_plugin.prepare.config_text import HERE, Project, config_text
from mgdet_plugin.prepare.recipe import Recipe
from mgdet_plugin.prepare.sound_set import SoundSet, class_counts, counted, sound_set
from mgdet_plugin.prepare.splits import Split, all_measured, split_pictures
from mgdet_plugin.prepare.start_from import Weights, look_into, made_fit


@dataclass(frozen=True)
class Wish:
    """What a person asked for.

    Attributes:
        data: Folder or annotation file.
        weights: Weights file to start from, None for none.
        old: Folder of old pictures, None for none.
        out: Config to write, None for the name of the data in the working folder.
        form: Format of the annotations, None for the one that is found.
        classes: File of class names, None where the annotations have them.
        images: Folder of the pictures, None for where they are found.
        source_classes: Names of the classes of the weights, as ``import_keras`` takes them.
        sets: Split -> its file of annotation lines, in place of what is found in the data.
        title: What the config is made from. Default: the name of the data.
    """

    data: Path
    weights: Path | None = None
    old: Path | None = None
    out: Path | None = None
    form: str | None = None
    classes: Path | None = None
    images: Path | None = None
    source_classes: str | None = None
    sets: Mapping[str, Path] = field(default_factory=dict)
    title: str | None = None


def make_project(wish: Wish, say: Callable[[str], object], recipe: Recipe = Recipe()) -> Path:
    """Read, split and convert the data, import the weights, and write the config.

    Args:
        wish: What is asked for.
        say: Takes each line for a person.
        recipe: What is settled before.

    Returns:
        The config.

    Raises:
        UserError: Anything is missing or cannot be trained on; nothing is written.
    """
    out, folder = destinations(wish)
    weights = None if wish.weights is None else look_into(wish.weights)
    _check_old(wish, weights)
    hints = Hints(None if wish.classes is None else text_names(wish.classes, f'--classes {wish.classes}'), wish.images)
    annotated = (read_sets(wish.sets, hints.classes or (), wish.images) if wish.sets else
                 read_annotated(wish.data, wish.form, hints))
    found = sound_set(annotated)
    say(f'found: {annotated.format} in {wish.data}')
    _say_found(found, say)
    split = all_measured(found.pictures) if recipe.measures else split_pictures(found.pictures)
    _say_split(split, annotated.classes, say)
    made = folder.with_name(f'.{folder.name}.{os.getpid()}')
    try:
        made.mkdir()
        text = _written(wish, recipe, out, made, folder, found, split, weights, say)
        made.rename(folder)
    except OSError as error:
        raise UserError(f'cannot write {folder}: {error.strerror}; nothing was written') from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    write_together({out: lambda stream: stream.write(text.encode())})
    return out


def destinations(wish: Wish) -> tuple[Path, Path]:
    """The config and the folder of what belongs to it, both still to be made.

    Raises:
        UserError: One is there already, lies in the data, or cannot be written.
    """
    data = wish.data
    if not data.exists():
        raise UserError(f'{data} is not there (seen from {os.getcwd()}); give a folder of pictures and annotations, or '
                        'an annotation file')
    named = data.resolve()
    if data.is_file():
        named = named.with_suffix('') if split_of(Path(named.stem)) is None else named.parent
    out = wish.out or Path(re.sub(r'\W+', '_', named.name).strip('_').casefold() + '.py')
    if out.suffix != '.py' or not re.fullmatch(r'[\w-]+', out.stem):
        raise UserError(f'--out {out}: give the path of a config to write, a name of letters, digits and _ that ends '
                        'in .py')
    check_destination(out)
    folder = out.with_name(f'{out.stem}_data')
    if data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise UserError(f'{out} would lie in the data ({data}), into which nothing is written; give a path outside by '
                        '--out')
    for path in (out, folder):
        if path.exists():
            raise UserError(f'{path} is there already and is not overwritten; give another name by --out, or remove it')
    return out, folder


def _check_old(wish: Wish, weights: Weights | None) -> None:
    """Refuse old pictures where nothing is to be kept, or where there are none."""
    if wish.old is None:
        return
    if weights is None:
        raise UserError('--old holds a run to what its weights knew, and no weights are given; give them by --weights')
    if next(pictures_below(str(wish.old)), None) is None:
        raise UserError(f'--old {wish.old} holds no picture; give a folder of pictures like those the weights were '
                        'trained on')


def _written(wish: Wish, recipe: Recipe, out: Path, made: Path, folder: Path, found: SoundSet, split: Split,
             weights: Weights | None, say: Callable[[str], object]) -> str:
    """Write what belongs to the config into a folder that will be renamed; the config's text."""
    classes = found.annotated.classes
    root = pictures_root(split.pictures)
    write_coco(made, {name: split.of(name) for name in split.names}, classes, root)
    say(f'written and read back, every box is there: {folder}/' + ', '.join(f'{name}.json' for name in split.names))
    start: Path | None = None
    if weights is None:
        size = 'full' if recipe.network == 'model5' else 'small'
        say(f'weights: none, so the {size} model is trained from nothing; with model5.h5, darknet53.h5 or a checkpoint '
            'give --weights')
    else:
        fit, lines = made_fit(weights, classes, made, wish.source_classes)
        if recipe.measures:
            _refuse_new_rows(weights, fit)
        say('weights: ' + '\n  '.join(lines))
        start = folder / fit.name if fit else weights.path
    scenario = scenario_of(weights, wish.old)
    network = weights.network if weights else recipe.network or 'nano'
    pictures = split.of('test' if recipe.measures else 'train')
    project = Project(
        title=f'{wish.title or wish.data.resolve().name}: made by `mgdet init` from {found.annotated.format}.',
        scenario=scenario, network=network, classes=classes, data=_seen_from(out, folder) + '/',
        images=_seen_from(out, root) + '/', splits={name: _words(split.of(name)) for name in split.names},
        weights=None if start is None else _seen_from(out, start),
        bridges=_other_bridges(weights), old=None if wish.old is None else _seen_from(out, wish.old) + '/',
        choices=recipe.settle(choose(pictures, scenario, network)), recipe=recipe)
    return config_text(project)


def _refuse_new_rows(weights: Weights, fit: Path | None) -> None:
    """Refuse to measure what was never trained."""
    new = load_checkpoint(fit)[1].get('meta', {}).get('new_classes') if fit else None
    if new:
        raise UserError(f'{weights.path} does not know {some(new)}, so nothing can be measured of that; name the '
                        'classes of the weights, in their order, by --source-classes')


def scenario_of(weights: Weights | None, old: Path | None) -> Scenario:
    """The scenario that weights ask for."""
    if weights is None:
        return 'nothing'
    if weights.part == 'backbone':
        return 'backbone'
    return 'full' if old is None else 'keep'


def _other_bridges(weights: Weights | None) -> tuple[int, ...]:
    """The bridges of whole weights, which the config must state where they are not its base's."""
    usual = dict(model5=(704, 352, 176), nano=(144, 72, 36))
    return () if weights is None or weights.bridges in ((), usual[weights.network]) else weights.bridges


def _seen_from(config: Path, path: Path) -> str:
    """A path for a config: from the config's own folder where it lies below it, else from the root."""
    place, here = Path(os.path.abspath(path)), Path(os.path.abspath(config)).parent
    return HERE + place.relative_to(here).as_posix() if place.is_relative_to(here) else place.as_posix()


def _words(pictures: list[Picture]) -> str:
    boxes = sum(len(each.boxes) for each in pictures)
    return f'{number_of(len(pictures), "picture")}, {number_of(boxes, "box")}'


def _say_found(found: SoundSet, say: Callable[[str], object]) -> None:
    classes = found.annotated.classes
    counts = class_counts(found.pictures)
    say(f'{_words(list(found.pictures))} of {number_of(len(classes), "class")}: {counted(counts)}')
    without = [name for name in classes if not counts[name]]
    if without:
        say(f'note: {len(without)} classes have no box: {", ".join(without)}')
    empty = sum(not each.boxes for each in found.pictures)
    if empty:
        say(f'note: {empty:,} pictures have no object: they are measured on and not trained on')
    for line in found.lines:
        say(f'note: {line}')


def _say_split(split: Split, classes: tuple[str, ...], say: Callable[[str], object]) -> None:
    say(f'{split.line}: ' + '; '.join(f'{name} {_words(split.of(name))}' for name in split.names))
    if not split.of('train'):
        return
    in_train = class_counts(split.of('train'))
    if not any(not box.ignore for each in split.of('train') for box in each.boxes):
        raise UserError('the train set has no box to learn from; give a train set with boxes')
    lacking = [name for name in classes if not in_train[name] and class_counts(split.pictures)[name]]
    if lacking:
        say(f'note: train has no box of {", ".join(lacking)}, so they cannot be learnt')


def next_lines(config: Path) -> list[str]:
    """What to do with a config that trains."""
    best = Path('work_dirs') / config.stem / 'best.pth'
    return [f'next: {command("train", config)}', f'then: {command("test", config, best)}']
