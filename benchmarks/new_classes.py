"""Classes beside those the weights know, on real photographs: blood cells, then raccoons or digits.

The weights are learnt on BCCD (configs/scratch/multigrid_nano_bccd.py) and get rows for the new classes. Each way
trains 400 steps of four new images with everything free: at 1e-3, and at 2e-3 the two that hold on to unlabelled images
of BCCD. The last epoch counts and everything is measured on test sets, by which nothing was chosen.
"""
from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmengine.config import Config

from benchmarks.benchmark import LearningOptions
from benchmarks.spread import markdown_table, spread_text
from benchmarks.trials import ONE_PROCESS, ROOT, Finished, Trial, config_of, find_finished, last_weights, run_trials
from benchmarks.untraining_ways import KEPT_LR, copied
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.files import write_together
from mgdet_plugin.datasets import DIGITS_ROOT, ensure_digits
from mgdet_plugin.runs.held_out import HeldOut
from mgdet_plugin.weights.importer import import_keras

NAME = 'new_classes'
CONFIG = 'benchmarks/new_classes_config.py'
CELLS = 'configs/scratch/multigrid_nano_bccd.py'
KNOWN = ('WBC', 'RBC', 'Platelets')
COUNTS = (10, 50)  # old images that are held on to
STEPS, BATCH = 400, 4
TRAINED_ON = 160  # of the raccoons; the others test
AP = 'coco/bbox_mAP'


@dataclass(frozen=True)
class Part:
    """Images and boxes of a split: an annotation file in COCO's form and the folder of its images."""
    ann_file: Path
    images: Path

    def dataset(self, classes: Sequence[str]) -> dict[str, Any]:
        """What it changes in the config of a dataset."""
        return dict(ann_file=str(self.ann_file), data_prefix=dict(img=f'{self.images}/'),
                    metainfo=dict(classes=list(classes)))


@dataclass(frozen=True)
class NewSet:
    """Images of new classes: the classes, and the splits to train and to test on."""
    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part


def new_classes(options: LearningOptions) -> str:
    """Train all ways, measure and write ``new_classes.json`` and ``.md`` into the folder of that name.

    Args:
        options: Folder, runs at once, seeds, where the data lie; ``only`` names ways to train, such as
            ``raccoon_none``, beside which those that were trained before are compared.

    Returns:
        The report for a person.

    Raises:
        UserError: A folder is not given or not as it should be, or a run failed.
    """
    if options.bccd is None:
        raise UserError(f'{NAME} needs the blood cells: --bccd DIR, a folder with annotations/ and images/')
    folder, bccd = options.folder.resolve() / NAME, options.bccd.resolve()
    raccoon = options.raccoon and options.raccoon.resolve()
    with contextlib.chdir(ROOT):
        sets, notes = new_sets(folder, raccoon)
        learnt = run_trials([Trial('cells', CELLS, 0, {**_cells(bccd), **options.precision})], folder, 1)[0]
        planned = {way: each for new in sets for way, each in ways(new, bccd, learnt, folder, options).items()}
        unknown = sorted(set(options.only) - set(planned))
        if unknown:
            raise UserError(f'--only {unknown[0]} is no way to train; there are {", ".join(planned)}')
        run_trials([trial for way, each in planned.items() if not options.only or way in options.only
                    for trial in each], folder, options.jobs)
        found = {way: find_finished(each, folder) for way, each in planned.items()}
        rows = [row for new in sets for row in measure(new, {
            way: runs for way, runs in found.items() if runs and way.startswith(f'{new.name}_')})]
        text = '\n'.join([report_text(rows), *notes]) + '\n'
        paths = {folder / f'{NAME}{suffix}': methodcaller('write', content.encode())
                 for suffix, content in (('.json', json.dumps(rows, indent=1) + '\n'), ('.md', text))}
        write_together(paths)
    return text + '\nwritten: ' + ', '.join(map(str, paths))


def _cells(bccd: Path) -> dict[str, Any]:
    """Options of the run that learns the cells: where they lie, one process."""
    datasets = {f'{split}_dataloader.dataset.data_root': f'{bccd}/' for split in ('val', 'test')}
    datasets |= {f'train_dataloader.dataset.datasets.{index}.data_root': f'{bccd}/' for index in (0, 1)}
    return {**ONE_PROCESS, **datasets, **{f'{split}_evaluator.ann_file': f'{bccd}/annotations/test.json'
                                          for split in ('val', 'test')}}


def new_sets(folder: Path, raccoon: Path | None) -> tuple[list[NewSet], list[str]]:
    """The sets there are, and a line for one that is not given."""
    digits = ensure_digits(DIGITS_ROOT) / 'target'
    classes = tuple(each['name'] for each in json.loads((digits / 'train.json').read_text())['categories'])
    sets = [NewSet('digits', classes, *(Part(digits / f'{split}.json', digits / split) for split in ('train', 'test')))]
    if raccoon is None:
        return sets, ['The raccoons were not trained on: give their folder with --raccoon DIR.']
    return [NewSet('raccoon', ('raccoon', ), *raccoon_parts(raccoon, folder)), *sets], []


def raccoon_parts(raccoon: Path, folder: Path) -> list[Part]:
    """The raccoons in COCO's form: the first to train on, by number, the others to test on.

    Raises:
        UserError: There are too few annotations.
    """
    files = sorted((raccoon / 'annotations').glob('raccoon-*.xml'), key=lambda path: int(path.stem.split('-')[1]))
    if len(files) <= TRAINED_ON:
        raise UserError(f'--raccoon {raccoon}: {len(files)} files annotations/raccoon-*.xml, and more than '
                        f'{TRAINED_ON} are needed')
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for split, chosen in (('train', files[:TRAINED_ON]), ('test', files[TRAINED_ON:])):
        path = folder / f'raccoons_{split}.json'
        path.write_text(json.dumps(coco_of(chosen)))
        parts.append(Part(path, raccoon / 'images'))
    return parts


def coco_of(files: Sequence[Path]) -> dict[str, Any]:
    """VOC annotations of raccoons in COCO's form."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, path in enumerate(files):
        root = ElementTree.parse(path).getroot()
        images.append(dict(id=index, file_name=f'{path.stem}.jpg', width=int(root.findtext('size/width', '')),
                           height=int(root.findtext('size/height', ''))))
        for each in root.iter('bndbox'):
            left, top, right, bottom = (float(each.findtext(key, '')) for key in ('xmin', 'ymin', 'xmax', 'ymax'))
            annotations.append(dict(id=len(annotations) + 1, image_id=index, category_id=1, iscrowd=0,
                                    bbox=[left, top, right - left, bottom - top],
                                    area=(right - left) * (bottom - top)))
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name='raccoon')])


def ways(new: NewSet, bccd: Path, learnt: Finished, folder: Path,
         learning: LearningOptions) -> dict[str, list[Trial]]:
    """Name -> runs, one a seed: without old images and with some.

    Args:
        new: What is learnt.
        bccd: Folder of the cells.
        learnt: The run that learnt them.
        folder: Where weights and old images go.
        learning: Seeds of the runs and how they compute.
    """
    classes = (*KNOWN, *new.classes)
    old = Part(bccd / 'annotations/test.json', bccd / 'images')
    new, old = (replace(new, train=relabelled(new.train, classes, folder / f'{new.name}_train.json'),
                        test=relabelled(new.test, classes, folder / f'{new.name}_test.json')),
                relabelled(old, classes, folder / f'{new.name}_cells_test.json'))
    options = {**shared_options(new, old, start_weights(new, learnt, folder)), **learning.precision}
    known = json.loads((bccd / 'annotations/train.json').read_text())['images']
    found: dict[str, Mapping[str, Any]] = {f'{new.name}_none': options}
    for count in COUNTS:
        held = copied([bccd / 'images' / each['file_name'] for each in known[:count]], folder / f'cells_{count}')
        found[f'{new.name}_keep_{count}'] = {**options, 'keep': dict(images=str(held)), 'stages.0.lr': KEPT_LR}
    return {way: [Trial(f'{way}_seed{seed}', CONFIG, seed, each) for seed in learning.seeds]
            for way, each in found.items()}


def start_weights(new: NewSet, learnt: Finished, folder: Path) -> Path:
    """The learnt weights with rows for the new classes; made anew where the learnt ones are newer."""
    source, out, names = last_weights(learnt.folder), folder / f'cells_{new.name}.pth', folder / f'{new.name}.txt'
    if not out.is_file() or out.stat().st_mtime < source.stat().st_mtime:
        names.write_text('\n'.join(new.classes))
        import_keras(source, out, config=CELLS, add_classes=names)
    return out


def relabelled(part: Part, classes: Sequence[str], path: Path) -> Part:
    """The same images and boxes in a file that has all the classes, by whose order mmdet numbers labels."""
    content = json.loads(part.ann_file.read_text())
    names = {each['id']: each['name'] for each in content['categories']}
    boxes = [{**each, 'category_id': classes.index(names[each['category_id']])} for each in content['annotations']]
    path.write_text(json.dumps({**content, 'annotations': boxes, 'categories': [
        dict(id=index, name=name) for index, name in enumerate(classes)]}))
    return Part(path, part.images)


def shared_options(new: NewSet, old: Part, weights: Path) -> dict[str, Any]:
    """Options of all runs on a new set, whose files have the classes of both."""
    classes = (*KNOWN, *new.classes)
    steps = len(json.loads(new.train.ann_file.read_text())['images']) // BATCH
    found: dict[str, Any] = {'model.bbox_head.num_classes': len(classes), 'load_from': str(weights),
                             'stages.0.epochs': STEPS // steps}
    for place, part in (('train_dataloader', new.train), ('val_dataloader', new.test), ('test_dataloader', new.test),
                        ('val_cfg.others.old.dataloader', old)):
        found |= {f'{place}.dataset.{key}': value for key, value in part.dataset(classes).items()}
    return {**found, **{f'{place}_evaluator.ann_file': str(new.test.ann_file) for place in ('val', 'test')},
            'val_cfg.others.old.evaluator.ann_file': str(old.ann_file)}


def measure(new: NewSet, runs: Mapping[str, Sequence[Finished]]) -> list[dict[str, Any]]:
    """A row a run: AP on both test sets, what it is of the loaded weights' and of the way without old images."""
    if not runs:
        return []
    cfg = config_of(next(iter(runs.values()))[0].trial)
    other = cfg.val_cfg.others.old
    old = Config(dict(cfg.to_dict(), test_dataloader=other.dataloader, test_evaluator=other.evaluator))
    tests = HeldOut.of_tests(dict(new=cfg, old=old))

    def scores(path: Path) -> dict[str, float]:
        return {domain: each.get(AP, 0.0) for domain, each in tests.measure(tests.read(str(path))).items()}

    start = scores(Path(cfg.load_from))
    rows: list[dict[str, Any]] = [dict(set=new.name, way='loaded weights', seed=None, **start)]
    for way, each in runs.items():
        rows += [dict(set=new.name, way=way, seed=run.trial.seed, seconds=run.seconds,
                      **scores(last_weights(run.folder))) for run in each]
    free = [row['new'] for row in rows if row['way'] == f'{new.name}_none']
    for row in rows[1:]:
        row['kept'] = row['old'] / start['old'] if start['old'] else None
        row['won'] = row['new'] / (sum(free) / len(free)) if free and any(free) else None
    return rows


def report_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table, a line a way."""
    heads = dict(new='new AP', old='old AP', kept='K', won='N', seconds='seconds')
    lines = []
    for way in dict.fromkeys((row['set'], row['way']) for row in rows):
        own = [row for row in rows if (row['set'], row['way']) == way]
        lines.append([*way, str(len(own)), *(spread_text([row.get(name) for row in own], 0 if name == 'seconds' else 3)
                                             for name in heads)])
    return markdown_table(['new classes', 'way', 'runs', *heads.values()], lines) + (
        '\n\nTest sets, last epoch; mean ± standard deviation over the seeds. K: old AP / that of the loaded weights; '
        'N: new AP / that of the way without old images.\n')
