"""Looks at what a stage of a plan is trained on, counts it and draws it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mgdet_plugin.common.files import check_destination, make_folder
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path
from mgdet_plugin.datasets import check_datasets, ensure_embedded_data
from mgdet_plugin.engine.checkpoint_check import check_same_tensors, compare_classes, read_weights
from mgdet_plugin.engine.config_check import check_parts, checked
from mgdet_plugin.keep.teacher import Teacher
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.report import planned_augmentation
from mgdet_plugin.plan.wiring import check_wiring
from mgdet_plugin.prepare.batches.assigned_objects import assigned_objects
from mgdet_plugin.prepare.batches.batch_sheet import SeenSample, write_batch_sheet
from mgdet_plugin.prepare.batches.stage_batches import PlainBatches, StageBatches, StageSample
from mgdet_plugin.prepare.batches.tally import Tally
from mgdet_plugin.prepare.batches.view import DRAWN, View, place_of, place_without_stages


class StageLook(NamedTuple):
    """What was seen in a line, where it is drawn, what was counted, and the planned share of each mixing step."""

    line: str
    path: Path
    tally: Tally
    planned: Mapping[str, float]


def look_at_stage(config: str, view: View, out: str | None = None, options: Mapping[str, Any] | None = None,
                  say: Callable[[str], object] = str) -> StageLook:
    """Look at the first samples of an epoch as a run of the config trains on them, and draw them.

    Without stages they are what its dataloader gives, see :class:`PlainBatches`.

    Args:
        config: Path of the config, or its name.
        view: What to look at.
        out: PNG to write. Default: ``look/stage<N>_epoch<E>.png`` in the folder of the config's runs, without stages
            ``look/epoch<E>.png``.
        options: Dotted keys of the config to set.
        say: Takes a line that a person should know.

    Raises:
        UserError: A part of the config, the data or the weights is missing or does not fit.
    """
    path = config_path(config)
    if view.checkpoint:
        check_weights_path(view.checkpoint, config)
    if out:
        check_destination(Path(out), path, *([Path(view.checkpoint)] if view.checkpoint else []))
    cfg = _config(path, options)
    with checked(cfg):
        plan = Plan.from_cfg(cfg) if cfg.get('stages') else None
        if plan is not None:
            check_wiring(cfg, plan)
        place = place_of(plan, view) if plan else place_without_stages(cfg.get('train_cfg') or {}, view)
        ensure_embedded_data(cfg)
        for line in (line for report in check_datasets(cfg, ['train']) for line in report.lines()):
            say(line)
        model: Any = MODELS.build(cfg.model)
        detector, stored = _detector(cfg, model, view, say) if view.checkpoint else (None, {})
        seed, whose = _seed(cfg, view, stored)
        batches = (StageBatches(cfg, plan, place.stage, place.epoch, seed, say) if plan else
                   PlainBatches(cfg, place.epoch, seed))
    if plan is None and (place.epoch or not cfg.train_dataloader.get('num_workers')):
        say('what is drawn at random here is not as in the run: without stages that is so in the first epoch alone, '
            'with num_workers')
    shares = planned_augmentation(cfg, plan)[place.stage] if plan else {}
    planned = {name: shares.get(name, 0.0) for name in batches.mixes}
    tally = Tally()
    drawn = batches.drawn(view.samples, DRAWN)
    seen = []
    for number, sample in enumerate(batches.samples(view.samples)):
        height, width = sample.inputs.shape[1:]
        objects = assigned_objects(sample.sample, (height, width), getattr(model, 'bbox_head', model))
        tally.add(sample, objects)
        if number in drawn:
            seen.append(SeenSample(sample, objects, _found(detector, sample, view) if detector else None))
    first, *more = tally.lines(planned if plan else None)
    epochs = f'epoch {place.epoch + 1}' + (f' to {tally.epoch + 1}' if tally.epoch > place.epoch else '')
    line = '; '.join([f'{place.words}, {epochs}, seed {seed} ({whose}): {first}', *more])
    target = Path(out) if out else make_folder(
        Path(cfg.get('work_dir') or Path('work_dirs', path.stem)) / 'look'
    ) / f'{f"stage{place.stage + 1}_" if plan else ""}epoch{place.epoch + 1}.png'
    beside = f'what {Path(view.checkpoint).name} finds, scores of {view.score_thr:g} or more' if view.checkpoint else ''
    write_batch_sheet(seen, target, batches.dataset.metainfo, line, beside)
    return StageLook(line, target, tally, planned)


def _config(path: Path, options: Mapping[str, Any] | None) -> Config:
    """A config that trains a model."""
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(dict(options or {}))
    check_parts(cfg, 'model', 'train_dataloader')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return cfg


def _detector(cfg: Config, model: Any, view: View, say: Callable[[str], object]) -> tuple[Teacher, Mapping[str, Any]]:
    """The model with the weights of a checkpoint, and what is stored beside these."""
    name = str(view.checkpoint)
    state, content = read_weights(name, cfg)
    check_same_tensors(name, state, model.state_dict(), cfg)
    meta = content.get('meta')
    stored = meta if isinstance(meta, Mapping) else {}
    for line in compare_classes(name, stored, cfg, 'train'):
        say(line)
    detector = Teacher(model, state)
    detector.model.to('cuda' if torch.cuda.is_available() else 'cpu')
    return detector, stored


def _seed(cfg: Config, view: View, stored: Mapping[str, Any]) -> tuple[int, str]:
    """The seed of the run that is looked at, and who says so."""
    own = (cfg.get('randomness') or {}).get('seed')
    given = ((view.seed, 'as given'), (own, "the config's"), (stored.get('seed'), "the checkpoint's"))
    return next(((int(seed), whose) for seed, whose in given if isinstance(seed, int)),
                (0, 'a run draws its own where the config has no randomness.seed, and logs it'))


def _found(detector: Teacher, sample: StageSample, view: View) -> InstanceData:
    """What the weights find in a sample, best last."""
    data = detector.model.data_preprocessor(dict(inputs=[sample.inputs], data_samples=[sample.sample.new()]), False)
    [found] = detector.detect(data['inputs'], data['data_samples'])
    found = found[found.scores >= view.score_thr]
    return found[found.scores.argsort()].cpu()
