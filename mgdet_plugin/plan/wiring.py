"""Whether a config is wired so that what its plan says can happen: scheduler, validations, names of pipeline steps."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
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
        if stage.until is not None and (interval > stage.epochs or not cfg.get('val_cfg')):
            raise UserError(f"stage '{stage.name}' ends by {stage.until.metric}, and its {stage.epochs} epochs see no "
                            f'validation (train_cfg.val_interval={interval}); validate more often or take until out')
        missing = [name for name, prob in stage.step_probs().items() if name not in steps and (
            prob > 0 or name in stage.probs)]
        if missing and steps:
            raise UserError(f"stage '{stage.name}' gives a probability to {missing[0]}, and no step of the training "
                            f'pipeline has this name; there is {", ".join(sorted(steps))}')
    check_best(cfg)


def check_best(cfg: Config) -> None:
    """Refuse a best checkpoint that would be the worst.

    Raises:
        UserError: The highest loss is to be kept.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best, rule = hook.get('save_best'), hook.get('rule')
    names, rules = ([each] if isinstance(each, str) or each is None else list(each) for each in (best, rule))
    for name, each in zip(names, rules * len(names) if len(rules) == 1 else rules, strict=False):
        if name and 'loss' in name and each == 'greater':
            raise UserError(f"default_hooks.checkpoint keeps the checkpoint of the highest {name} (rule='greater'); "
                            "set rule='less'")


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
