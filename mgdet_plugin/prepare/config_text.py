"""The text of a config: ours inherited, and what differs, each with the reason beside it."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from mgdet_plugin.common.literals import WIDTH, assigned, lines_of, literal
from mgdet_plugin.prepare.choices import Choice, Choices, Network, Scenario
from mgdet_plugin.prepare.recipe import Recipe, merged

HERE = '{{ fileDirname }}/'  # mmengine puts the config's own folder there
_SCRATCH_MODELS = dict(nano='_base_/models/multigrid_nano_scratch.py', model5='_base_/models/multigrid_scratch.py')
_SCRATCH = ('_base_/datasets/coco_letterbox.py', '_base_/schedules/scratch.py')
_WHY = dict(
    full="The guide's three stages: pretrained weights are thawed from the head down, at low rates.",
    keep='Held to what the weights thought of old pictures, so that what they know is kept (docs/retention.md).',
    backbone='Only the backbone is pretrained: neck and head learn first, on frozen features, then everything.',
    nothing='No weights to start from: the {} model and the recipe for training from nothing (docs/accuracy.md). '
            'The {}: {} in place of the first base.')
_MEASURES = 'Whole weights, measured as they are.'
_SETTLED = 'The stages are those of that file, held to the rules of the guide (docs/from_tensorflow.md).'


@dataclass(frozen=True)
class Project:
    """All that a config states.

    Attributes:
        title: What it is for, its first line.
        scenario: What it starts from.
        network: Which of ours.
        classes: Of the set.
        data: Folder of the annotation files, as the config writes it.
        images: Folder that all pictures lie below, likewise.
        splits: Split -> its images and boxes in words.
        weights: Checkpoint to start from, likewise; None from nothing.
        bridges: Channels of the weights' bridges, where the config must state them.
        old: Folder of old pictures, None without.
        choices: Input size, batch, lengths.
        recipe: What else is settled.
    """

    title: str
    scenario: Scenario
    network: Network
    classes: Sequence[str]
    data: str
    images: str
    splits: dict[str, str]
    weights: str | None
    bridges: tuple[int, ...]
    old: str | None
    choices: Choices
    recipe: Recipe = field(default_factory=Recipe)


def base_of(scenario: Scenario, network: Network) -> tuple[str, ...]:
    """The configs of ours that it inherits, by name."""
    if scenario == 'nothing':
        return (_SCRATCH_MODELS[network], *_SCRATCH)
    if scenario == 'backbone':
        return (f'mgdet_{"" if network == "model5" else "nano_"}backbone_staged.py', )
    return (f'mgdet_{network}_{"keep" if scenario == "keep" else "staged"}.py', )


def config_text(project: Project) -> str:
    """The whole file."""
    blocks = [_bases(project), _data(project), _sets(project), _model(project)]
    blocks += [] if project.recipe.measures else [_length(project)]
    blocks += [assigned(key, value) for key, value in project.recipe.more.items()]
    return '\n'.join(line for block in blocks for line in block) + '\n'


def _comment(text: str, indent: str = '') -> list[str]:
    return wrap(text, WIDTH, initial_indent=f'{indent}# ', subsequent_indent=f'{indent}# ', break_long_words=False,
                break_on_hyphens=False)


def _bases(project: Project) -> list[str]:
    names = [f"'mgdet_plugin::{name}'" for name in base_of(project.scenario, project.network)]
    lines = [*_comment(project.title), *_comment(_why(project))]
    if len(names) == 1:
        return [*lines, f'_base_ = {names[0]}', '']
    return [*lines, '_base_ = [', *(f'    {name},' for name in names), ']', '']


def _why(project: Project) -> str:
    """What the run is, in a sentence or two."""
    if project.recipe.measures:
        return _MEASURES
    if project.recipe.stages:
        return _SETTLED
    small = project.network == 'nano'
    other = _SCRATCH_MODELS['model5' if small else 'nano']
    return _WHY[project.scenario].format('small' if small else 'full', 'full one' if small else 'small one', other)


def _data(project: Project) -> list[str]:
    described = '; '.join(f'{name}: {words}' for name, words in project.splits.items())
    classes = _wrapped('classes = (', [f'{name!r}, ' for name in project.classes], ')')
    return [*_comment(f'The data, as COCO files that were made from it. {described}.'), f'data_root = {project.data!r}',
            f'images = {project.images!r}', *classes]


def _wrapped(start: str, parts: Sequence[str], end: str) -> list[str]:
    """Parts behind one another on as many lines as they need."""
    lines, line = [], start
    for part in parts:
        if len(line) + len(part.rstrip()) > WIDTH - 1:
            lines.append(line.rstrip())
            line = '    '
        line += part
    text = line.rstrip()
    return [*lines, (text if len(parts) == 1 else text.removesuffix(',')) + end]


def _sets(project: Project) -> list[str]:
    """Pipelines at the input size, and the three dataloaders with their evaluators."""
    size, batch = project.choices.size, project.choices.batch
    digits = _is_digits(project)
    steps = (4, 1) if digits else (5, 1)
    lines = ['', *_comment(f'{size.value} x {size.value}: {size.why}.'),
             f'img_scale = ({size.value}, {size.value})',
             'train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline',
             f'train_pipeline[{steps[0]}].scale = test_pipeline[{steps[1]}].scale = img_scale']
    if digits:
        views = ', '.join(f'({side}, {side})' for side in (size.value, size.value + 32, size.value - 32))
        lines += ['tta_pipeline = _base_.tta_pipeline',
                  f"tta_pipeline[1].transforms[0] = [dict(type='Letterbox', scale=each) for each in ({views})]"]
    if project.recipe.images is not None:
        lines += ['# The truth is that of the pictures measured, not of the whole file.',
                  "test_pipeline[-1].meta_keys += ('instances', )"]
    lines += [line for step in project.recipe.steps
              for line in lines_of(step, 'train_pipeline.insert(-2, ', ')  # before boxes are filtered', '')]
    lines += ['_set = dict(', "    type='CocoDataset',", '    data_root=data_root,',
              '    data_prefix=dict(img=images),',
              f'    metainfo=dict({"_delete_=True, " if digits else ""}classes=classes))']
    if not project.recipe.measures:
        lines += [*_comment(f'{batch.value} images a step: {batch.why}.'),
                  f'train_dataloader = dict(batch_size={batch.value}, dataset=dict(',
                  "    ann_file='train.json', pipeline=train_pipeline,",
                  '    filter_cfg=dict(filter_empty_gt=True, min_size=1),  # not those without objects',
                  '    **_set))']
    lines += _measured(project)
    if digits:
        lines.append('val_cfg = dict(others=None)  # the base follows the digits as a further set')
    return lines


def _measured(project: Project) -> list[str]:
    """The dataloaders and evaluators of val and test."""
    recipe, lines = project.recipe, []
    for name in ('val', 'test'):
        source = name if name in project.splits else 'test' if recipe.measures else 'val'
        batch = '' if recipe.test_batch is None else f'batch_size={recipe.test_batch}, '
        images = '' if recipe.images is None else f'indices={recipe.images}, '
        lacks = '' if recipe.measures or name == source else '  # there is no test set'
        lines.append(f"{name}_dataloader = dict({batch}dataset=dict(ann_file='{source}.json', {images}"
                     f'pipeline=test_pipeline, **_set)){lacks}')
        metric = ''.join(f', {key}={literal(value)}' for key, value in recipe.metric.items())
        truth = f"data_root + '{source}.json'" if recipe.images is None else None
        lines.append(f'{name}_evaluator = dict(ann_file={truth}{metric})')
    return lines


def _model(project: Project) -> list[str]:
    """The model, and what it starts from and is held to."""
    head: dict[str, Any] = dict(num_classes=len(project.classes))
    if project.bridges:
        head['bridge_channels'] = project.bridges
    model: dict[str, Any] = dict(bbox_head=head)
    if project.scenario == 'backbone':
        model = dict(backbone=dict(init_cfg=dict(checkpoint=project.weights)), **model)
    lines = ['', *assigned('model', merged(model, project.recipe.model))]
    if project.scenario in ('full', 'keep'):
        lines.append(f'load_from = {project.weights!r}')
    if project.old is not None:
        lines += ['# Pictures like those the weights were trained on; no labels are used.',
                  f'keep = dict(images={project.old!r}{", images_used=None" if project.network == "nano" else ""})']
    return lines


_GUIDE_STAGES = (
    "name='head', epochs={}, freeze_level=2, lr=1e-4, mosaic_prob=0.0, mixup_prob=0.0",
    "name='neck', epochs={}, freeze_level=1, lr=5e-5, mosaic_prob=0.3, mixup_prob=0.1",
    "name='full', epochs={}, freeze_level=0, lr=3e-5, mosaic_prob=0.3, mixup_prob=0.1")
_STAGES = dict(
    full=_GUIDE_STAGES, keep=_GUIDE_STAGES,
    backbone=("name='neck', epochs={}, freeze_level=1, lr=1e-4, mosaic_prob=0.3, mixup_prob=0.1",
              "name='full', epochs={}, freeze_level=0, lr=1e-4, warmup_epochs=1, boost=2.0, boost_epochs=2,\n"
              "         mosaic_prob=0.3, mixup_prob=0.1"))
_FREE_STAGE = ("name='all', epochs={}, freeze_level=0, lr=1e-3, mosaic_prob=0.3, mixup_prob=0.1", )


def _length(project: Project) -> list[str]:
    """How long it trains."""
    epochs, interval = project.choices.epochs, project.choices.interval
    if project.scenario == 'nothing':
        return _scratch_length(epochs[0], interval)
    lines = ['stages = [']
    for fields, why in project.recipe.stages:
        lines += [*_comment(why, '    '), *lines_of(fields, '', ',', '    ')]
    if project.recipe.stages:
        return [*lines, ']', f'train_cfg = dict(val_interval={interval.value})  # {interval.why}']
    stages = _FREE_STAGE if len(epochs) == 1 else _STAGES[project.scenario]
    for stage, each in zip(stages, epochs, strict=True):
        lines += [*_comment(each.why, '    '), f'    dict({stage.format(each.value)}),']
    return [*lines, ']', f'train_cfg = dict(val_interval={interval.value})  # {interval.why}']


def _scratch_length(epochs: Choice, interval: Choice) -> list[str]:
    every = max(interval.value, epochs.value // 20)
    return [*_comment(f'{epochs.value} epochs: {epochs.why}.'), f'max_epochs = {epochs.value}',
            f'train_cfg = dict(max_epochs=max_epochs, val_interval={every})',
            'param_scheduler = _base_.param_scheduler', 'param_scheduler[1].T_max = max_epochs',
            '# The best on val is best.pth.',
            f"default_hooks = dict(checkpoint=dict(interval={every}, save_best='auto'))"]


def _is_digits(project: Project) -> bool:
    """Whether the base's sets are the embedded digits: light pipelines, and a palette and views of their own."""
    return project.network == 'nano' and project.scenario != 'nothing'
