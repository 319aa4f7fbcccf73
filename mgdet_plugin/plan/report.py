"""What a config's plan will do, worked out without training: the same functions a run uses, on the model alone."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mgdet_plugin.common.checkpoints import load_checkpoint
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets import OldImages, ensure_embedded_data, iter_dataset_cfgs
from mgdet_plugin.datasets.formats.annotation_check import config_name
from mgdet_plugin.plan.freezing import Frozen, frozen_of, statistics_layers, trunk_of
from mgdet_plugin.plan.keeping import Keeping, form_of, is_followed
from mgdet_plugin.plan.plan import Plan, Stage, start_of
from mgdet_plugin.plan.progress import stages_before
from mgdet_plugin.plan.rates import CONSTRUCTOR, PlannedRates, RateRules, base_rate, parameter_groups
from mgdet_plugin.plan.rules import Finding, check_rules, rate_limit
from mgdet_plugin.plan.until import Until
from mgdet_plugin.plan.wiring import check_wiring, config_steps, planned_name, stage_probs

_ON_NEW = dict(distil='the cells away from labels', spare="the weights' sure boxes spared",
               recolour='copies in other colours')


def plan_report(cfg: Config, processes: int = 1) -> tuple[dict[str, Any], list[Finding]]:
    """A plan in plain data, and the rules it breaks.

    Args:
        cfg: A whole config with ``stages``.
        processes: Number of processes it will run in, for scaled rates.

    Returns:
        The report, and the broken rules.

    Raises:
        UserError: If the config has no plan or it does not fit the model.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    plan = Plan.from_cfg(cfg)
    model = MODELS.build(cfg.model)
    check_wiring(cfg, plan)
    path = str(cfg.get('load_from') or '')  # weights that an earlier stage has yet to make have no history
    loaded = load_checkpoint(path, mmap=True)[1] if path.endswith('.pth') and os.path.isfile(path) else {}
    findings = check_rules(plan, cfg, model, stages_before(loaded))
    groups, rates = _rates(cfg, plan, model, processes)
    probs = planned_augmentation(cfg, plan)
    first = plan.first_epochs()
    stages = [
        dict(_stage(stage, model), until=until_in_words(plan.until(index)),
             first_epoch=first[index] + 1, last_epoch=first[index] + stage.epochs,
             batch_size=stage.batch_size or cfg.train_dataloader.batch_size,
             old_images=plan.keep.beside(stage.batch_size or cfg.train_dataloader.batch_size) if plan.keep else 0,
             keep_weight=plan.keep_weight(index),
             groups=_groups(groups, rates, index, frozen_of(stage, model), model),
             augmentation=probs[index],
             trunk=trunk_of(model, frozen_of(stage, model)) if plan.trunk_cache is not None else '')
        for index, stage in enumerate(plan.stages)
    ]
    report = dict(config=config_name(cfg), start=plan.start, load_from=cfg.get('load_from'), epochs=plan.epochs,
                  rate_limit=rate_limit(plan), rate_scale=rates.scale, allow=sorted(plan.allow), stages=stages,
                  keep=_kept(cfg, plan.keep, model, plan.start) if plan.keep else None)
    return report, findings


def report_without_stages(cfg: Config) -> dict[str, Any]:
    """What a config without stages trains, as far as it says: another loop than that of a plan carries it out.

    Raises:
        UserError: It trains nothing, or by a loop that needs stages.
    """
    loop = cfg.get('train_cfg') or {}
    if loop.get('type') == 'StagedTrainLoop':
        raise UserError(f'{cfg.filename} has no stages, and its StagedTrainLoop needs some; set stages=[dict(name=..., '
                        'epochs=..., lr=..., freeze_level=...)]')
    lacking = [key for key in ('train_cfg', 'optim_wrapper', 'model') if not cfg.get(key)]
    if lacking:
        raise UserError(f'{cfg.filename} has neither stages nor {" and ".join(lacking)}, so it trains nothing')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    parameters = list(MODELS.build(cfg.model).parameters())
    optimizer, schedulers = cfg.optim_wrapper.get('optimizer') or {}, cfg.get('param_scheduler') or []
    return dict(config=config_name(cfg), start=start_of(cfg), load_from=cfg.get('load_from'), stages=[],
                loop=loop.get('type') or ('EpochBasedTrainLoop' if loop.get('by_epoch') else 'IterBasedTrainLoop'),
                epochs=loop.get('max_epochs'), iterations=loop.get('max_iters'),
                optimizer=optimizer.get('type'), lr=optimizer.get('lr'),
                schedulers=[each.get('type') for each in ([schedulers] if isinstance(schedulers, Mapping) else
                                                          schedulers)],
                parameters=sum(each.numel() for each in parameters),
                trained_parameters=sum(each.numel() for each in parameters if each.requires_grad))


def _text_without_stages(report: Mapping[str, Any]) -> str:
    length = f'{report["epochs"]} epochs' if report['epochs'] else f'{report["iterations"]} iterations'
    source = f' ({report["load_from"]})' if report['load_from'] else ''
    return (f'{report["config"]}: no stages; {report["loop"]} trains {report["trained_parameters"]:,} of '
            f'{report["parameters"]:,} parameters for {length}, start: {report["start"]}{source}, '
            f'{report["optimizer"]} at {report["lr"]}, {", ".join(report["schedulers"]) or "no schedule"}')


def plan_text(report: Mapping[str, Any]) -> str:
    """The report for a person."""
    if not report['stages']:
        return _text_without_stages(report)
    limit = f', no rate above {report["rate_limit"]:g}' if report['rate_limit'] else ''
    scale = f', rates scaled by {report["rate_scale"]:g}' if report['rate_scale'] != 1 else ''
    source = f' ({report["load_from"]})' if report['load_from'] else ''
    lines = [f'{report["config"]}: {report["epochs"]} epochs in {len(report["stages"])} stage'
             f'{"s" if len(report["stages"]) > 1 else ""}, start: {report["start"]}{source}{limit}{scale}']
    if report['keep']:
        lines.append(f'keeps: {_kept_text(report["keep"])}')
    elif report['start'] == 'full':
        lines.append("keeps: nothing of what the weights know is held (keep=dict(images='FOLDER') does)")
    for index, stage in enumerate(report['stages'], 1):
        lines += ['', *_stage_lines(index, stage)]
    return '\n'.join(lines)


def _kept(cfg: Config, keep: Keeping, model: nn.Module, start: str) -> dict[str, Any]:
    """What a plan holds the model to; ``pictures`` is None where their folder is not there yet."""
    ensure_embedded_data(cfg)  # which is made on first use, so that a plan says the same before a run and after it
    try:
        pictures = len(OldImages(keep.images, serialize_data=False)) if keep.images is not None else 0
    except UserError:
        pictures = None
    followed = is_followed(cfg)
    return dict(form=form_of(model, start, keep.form), images=keep.images, pictures=pictures,
                images_used=keep.images_used, share=keep.share, at_least=keep.at_least, held_out=keep.others(followed),
                followed=followed, on_new=keep.on_new, recolour=keep.recolour, cache=keep.cache)


def _kept_text(keep: Mapping[str, Any]) -> str:
    """What is held, in a line."""
    recoloured = ', in other colours' if keep['recolour'] else ''
    if keep['images'] is None:
        return f'{keep["form"]} held on the new images alone, {_ON_NEW[keep["on_new"]]}'
    source = keep['images'] if isinstance(keep['images'], str) else 'a dataset'
    there = 'not there yet' if keep['pictures'] is None else f'{keep["pictures"]:,} pictures'
    used = f', {keep["images_used"]:,} of them trained on' if keep['images_used'] else ''
    measured = ("the labelled set val_cfg.others['old']" if keep['followed'] else
                f'{keep["held_out"]:.0%} of them, never trained on' if isinstance(keep['held_out'], float) else
                'nothing' if not keep['held_out'] else 'others, never trained on')
    more = ''.join([recoloured, f', on new images: {_ON_NEW[keep["on_new"]]}' if keep['on_new'] else '',
                    f', the teacher cached ({keep["cache"]}), old images not augmented' if keep['cache'] else ''])
    return (f'{keep["form"]} held on {source} ({there}{used}), {keep["share"]:.0%} of each batch{more}; at least '
            f'{keep["at_least"]:.0%} of the old AP must be left, measured on {measured}')


def _stage_lines(index: int, stage: Mapping[str, Any]) -> list[str]:
    lines = [f"stage {index} '{stage['name']}': epochs {stage['first_epoch']} to {stage['last_epoch']}, "
             f'{stage["frozen"]}, batch {stage["batch_size"]} a process'
             + (f' and {stage["old_images"]} old images, weight {stage["keep_weight"]:g}' if stage['old_images'] else
                '')]
    total = stage['trained_parameters'] + stage['frozen_parameters']
    lines.append(f'  trains {stage["trained_parameters"]:,} of {total:,} parameters')
    for name, part in stage['parts'].items():
        state = 'trains' if not part['frozen'] else 'frozen' if not part['trained'] else 'in part'
        norms = [f'{part[key]} {what}' for key, what in (('norms_learning', 'learn their statistics'),
                                                         ('norms_held', 'held')) if part[key]]
        lines.append(f'  {name:<12} {state:<8} {part["trained"]:>12,} trained {part["frozen"]:>12,} frozen'
                     f'   normalisation: {", ".join(norms) or "none"}')
    lines.append(f'  rate: {stage["schedule"]}')
    for group in stage['groups']:
        rates = (f'{group["first"]:.3g} -> {group["peak"]:.3g} -> {group["last"]:.3g}' if group['trains'] else 'frozen')
        lines.append(f'    {group["name"]:<24} {group["parameters"]:>12,} parameters   {rates}')
    shares = ', '.join(f'{name} {prob:g}' for name, prob in stage['augmentation'].items())
    lines.append(f'  augmentation: {shares or "as in the pipeline"}')
    if stage['trunk']:
        lines.append(f'  trunk cache: each image once as far as {stage["trunk"]}, unless a step is random')
    if stage['until']:
        lines.append(f'  ends earlier by: {stage["until"]}')
    return lines


def _stage(stage: Stage, model: nn.Module) -> dict[str, Any]:
    """What a stage freezes, in numbers."""
    frozen = frozen_of(stage, model)
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        part = parts.setdefault(name.split('.')[0], dict(trained=0, frozen=0, norms_learning=0, norms_held=0))
        part['frozen' if name in frozen.parameters else 'trained'] += parameter.numel()
    for name in statistics_layers(model):
        if name.split('.')[0] in parts:
            parts[name.split('.')[0]]['norms_held' if name in frozen.norms else 'norms_learning'] += 1
    what = (f'freeze level {stage.freeze_level}' if stage.freeze_level is not None else
            f'only {", ".join(stage.train)} trains' if stage.train is not None else
            f'frozen: {", ".join(stage.freeze or ()) or "nothing"}')
    return dict(name=stage.name, epochs=stage.epochs, frozen=what, parts=parts, schedule=schedule_in_words(stage),
                restore_best=stage.restore_best, restart_ema=stage.restart_ema, lr=stage.lr,
                lr_mult=dict(stage.lr_mult), trained_parameters=sum(part['trained'] for part in parts.values()),
                frozen_parameters=sum(part['frozen'] for part in parts.values()))


def until_in_words(until: Until | None) -> str:
    """When a stage ends before its last epoch, empty where it does not."""
    return (f'{until.metric}, {until.patience} validations without improvement, after at least '
            f'{_epochs(until.min_epochs)}' if until else '')


def schedule_in_words(stage: Stage) -> str:
    """How the rate of a stage goes."""
    steps = [f'{stage.lr:g}']
    if stage.warmup:
        steps.append(f'{_epochs(stage.warmup)} of warmup from {stage.warmup_ratio:g} of it')
    if stage.boost_epochs:
        steps.append(f'{_epochs(stage.boost_epochs)} at {stage.boost:g} times it')
    if stage.schedule == 'cosine':
        steps.append(f'cosine to {stage.eta_ratio:.3g} of it')
    if stage.plateau is not None:
        least = f', not below {stage.plateau.min_lr:g}' if stage.plateau.min_lr else ''
        steps.append(f'times {stage.plateau.factor:g} wherever {stage.plateau.metric} has not improved for '
                     f'{stage.plateau.patience} validations{least}')
    return ', '.join(steps)


def span_in_words(first: int, last: int) -> str:
    """The epochs from one to another, both counted from 1."""
    return f'epochs {first} to {last}' if last > first else f'epoch {first}'


def _epochs(count: float) -> str:
    return f'{count:.3g} epoch{"" if count == 1 else "s"}'


def _rates(cfg: Config, plan: Plan, model: nn.Module, processes: int) -> tuple[list[dict[str, Any]], PlannedRates]:
    """The run's groups and their rates."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('constructor') != CONSTRUCTOR:
        raise UserError(f"optim_wrapper.constructor is {wrapper.get('constructor')!r}; a plan needs '{CONSTRUCTOR}'")
    groups = parameter_groups(model, RateRules.build(wrapper.get('paramwise_cfg')), plan.stages,
                              base_rate(plan, wrapper.optimizer.get('lr')))
    scaling, batch = cfg.get('auto_scale_lr') or {}, cfg.train_dataloader.batch_size
    if not scaling.get('enable'):
        return groups, PlannedRates(plan, groups, limit=rate_limit(plan))
    scale = processes * batch / scaling['base_batch_size'] * wrapper.get('accumulative_counts', 1)
    return groups, PlannedRates(plan, groups, limit=rate_limit(plan), scale=scale, batch_size=batch)


def _groups(groups: Sequence[Mapping[str, Any]], rates: PlannedRates, index: int, frozen: Frozen,
            model: nn.Module) -> list[dict[str, Any]]:
    """Each group's first rate, its rate at the top, and its last."""
    stage = rates.plan.stages[index]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trains = [any(names[id(each)] not in frozen.parameters for each in group['params']) for group in groups]
    return [dict(name=group['name'], parameters=sum(each.numel() for each in group['params']), trains=counts,
                 first=rate * stage.factor(0.0), peak=rate * stage.peak_boost, last=rate * stage.factor(stage.epochs))
            for group, rate, counts in zip(groups, rates.peaks(index, trains), trains)]


def planned_augmentation(cfg: Config, plan: Plan) -> list[dict[str, float]]:
    """Name of a step of the training pipeline -> probability that it is applied, for each stage."""
    steps = config_steps((cfg.get('train_dataloader') or {}).get('dataset'))
    return [{**_own_probs(cfg), **probs} for probs in stage_probs(plan, steps)]


def _own_probs(cfg: Config) -> dict[str, float]:
    """Name of a step of the training pipeline -> its own probability, where it has one."""
    found: dict[str, float] = {}
    for leaf in iter_dataset_cfgs((cfg.get('train_dataloader') or {}).get('dataset')):
        for step in leaf.get('pipeline') or ():
            if isinstance(step.get('prob'), (int, float)):
                found[planned_name(step)] = float(step['prob'])
            elif step['type'] in ('PhotoMetricDistortion', 'RandomAffine'):
                found[str(step['type'])] = 1.0
    return found
