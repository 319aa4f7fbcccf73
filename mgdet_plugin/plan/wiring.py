"""Whether a config is wired so that what its plan says can happen: scheduler, validations, names of pipeline steps."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmdet.registry import METRICS
from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.metric_names import AUTO, expected, is_mean_ap, kind_of, prefix_of
from mgdet_plugin.datasets import iter_dataset_cfgs
from mgdet_plugin.plan.plan import BASE_AUGMENTATIONS, Plan


def check_wiring(cfg: Config, plan: Plan) -> None:
    """Refuse a config in which something the plan says could never happen.

    Raises:
        UserError: What the plan says, and what is missing.
    """
    loop = cfg.get('train_cfg') or {}
    if loop.get('type') != 'StagedTrainLoop':
        raise UserError(f'train_cfg.type is {loop.get("type")!r}, and stages are carried out by another loop; set '
                        "train_cfg=dict(type='StagedTrainLoop'), or take stages out")
    schedulers = cfg.get('param_scheduler') or []
    types = [each.get('type') for each in ([schedulers] if isinstance(schedulers, Mapping) else schedulers)]
    if types != ['StagedLR']:
        raise UserError(f'param_scheduler is {types}: the rates of the stages would not be used alone; set '
                        "param_scheduler=[dict(type='StagedLR')]")
    interval = loop.get('val_interval', 1)
    steps = config_steps((cfg.get('train_dataloader') or {}).get('dataset'))
    for stage in plan.stages:
        for field, what, waiting in (('until', 'ends', stage.until), ('plateau', 'lowers its rate', stage.plateau)):
            if waiting is not None and (interval > stage.epochs or not cfg.get('val_cfg')):
                raise UserError(f"stage '{stage.name}' {what} by {waiting.metric}, and its {stage.epochs} epochs see "
                                f'no validation (train_cfg.val_interval={interval}); validate more often or take '
                                f'{field} out')
        missing = [name for name, prob in stage.step_probs().items() if name not in steps and (
            prob > 0 or name in stage.probs)]
        if missing and steps:
            raise UserError(f"stage '{stage.name}' gives a probability to {missing[0]}, and no step of the training "
                            f'pipeline has this name; there is {", ".join(sorted(steps))}')
    check_figures(cfg, plan)


def check_figures(cfg: Config, plan: Plan) -> None:
    """Refuse a best checkpoint or a stage's end by a figure that no validation of the config gives, or by the worst.

    Raises:
        UserError: With the figure to go by.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best, rule = hook.get('save_best'), hook.get('rule')
    names, rules = ([each] if isinstance(each, str) or each is None else list(each) for each in (best, rule))
    for name, each in zip(names, rules * len(names) if len(rules) == 1 else rules, strict=False):
        for worst, kind, right in (('greater', 'highest', 'less'), ('less', 'lowest', 'greater')):
            if name and each == worst and ('loss' in name if right == 'less' else is_mean_ap(name)):
                raise UserError(f'default_hooks.checkpoint keeps the checkpoint of the {kind} {name} (rule={each!r}); '
                                f'set rule={right!r}')
    given = [('default_hooks.checkpoint.save_best', name) for name in names if name and name != AUTO]
    given += [(f"{field}.metric of stage '{stage.name}'", waiting.metric) for stage in plan.stages
              for field, waiting in (('until', stage.until), ('plateau', stage.plateau)) if waiting]
    given += [('plan.early_stopping.metric', plan.early_stopping.metric)] if plan.early_stopping else []
    kinds, known = _given_figures(cfg)
    for where, name in given:
        if kinds and kind_of(name) not in kinds:
            losses = "; losses are measured by val_cfg=dict(type='LossValLoop')" if name.startswith('val/') else ''
            right = known[0] if known and not losses else ''
            raise UserError(f'{where} is {name!r}, and the names of what the validation gives begin with '
                            f'{", ".join(sorted(filter(None, kinds)))}{losses}' + (f'; set {right!r}' if right else ''))


def _given_figures(cfg: Config) -> tuple[set[str], list[str]]:
    """How the names of a validation's figures begin, empty where that cannot be told; and the known mean APs."""
    loop = cfg.get('val_cfg') or {}
    metrics = _metrics(cfg.get('val_evaluator'))
    if not loop or not metrics or loop.get('type', 'ValLoop') not in ('ValLoop', 'LossValLoop'):
        return set(), []
    kinds = {prefix_of(*each) for each in metrics}
    if loop.get('type') == 'LossValLoop':
        kinds.add('val')
    for domain, each in (loop.get('others') or {}).items():
        theirs = _metrics((each or {}).get('evaluator'))
        kinds |= {domain, *(f'{domain}/{prefix_of(*one)}'.rstrip('/') for one in theirs)}
    return kinds, [name for each in metrics for name in expected(*each)]


def _metrics(evaluator: Any) -> list[tuple[type, Mapping[str, Any]]]:
    """Class and arguments of every metric of an evaluator's config; none where a class is not known."""
    listed = [evaluator] if isinstance(evaluator, Mapping) else list(evaluator or ())
    found = [(METRICS.get(each.get('type')), each) for each in listed if isinstance(each, Mapping)
             and isinstance(each.get('type'), str)]
    return found if len(found) == len(listed) and all(kind for kind, _ in found) else []


def config_steps(dataset: Any) -> set[str]:
    """What a plan calls the steps in the pipelines of a dataset's config, wrappers included."""
    return {planned_name(step) for leaf in iter_dataset_cfgs(dataset) for step in leaf.get('pipeline') or ()}


def planned_name(step: Mapping[str, Any]) -> str:
    """What a plan calls a step of a pipeline, by its config."""
    return str(step.get('name', step['type'])) if step['type'] == 'StagedMix' else str(step['type'])


def stage_probs(plan: Plan, steps: Collection[str]) -> list[dict[str, float]]:
    """Name of a pipeline step -> probability, for each stage: what the plan says of the steps.

    Mixing steps are named only if some stage mixes, and what a clean stage leaves out only where it is among the
    ``steps`` of the pipeline: any other name must be there.
    """
    mixed = {name for stage in plan.stages for name, prob in stage.step_probs().items() if prob > 0}
    optional = {*BASE_AUGMENTATIONS, 'mosaic', 'mixup'}
    return [{name: prob for name, prob in stage.step_probs().items()
             if name in steps or name in stage.probs or name not in optional or name in mixed} for stage in plan.stages]
