"""The rules of the training guide, held against a plan before anything trains.

A broken rule is an error or a warning, one line, with the name a person can switch it off by: ``plan.allow``.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmengine.config import Config
from torch import nn

from mgdet_plugin.common.errors import UserError, is_whole, require
from mgdet_plugin.common.resources import command
from mgdet_plugin.models.multigrid_loss import RECIPE_SCALES
from mgdet_plugin.plan.freezing import Frozen, frozen_of, trained_parts
from mgdet_plugin.plan.plan import Plan
from mgdet_plugin.plan.rates import fixed_multipliers, stage_multiplier

MAX_FULL_RATE = 1e-4
ERRORS = ('skipped-level', 'rate', 'loss-scales', 'grid-normalizer', 'mixing-while-frozen')
WARNINGS = ('many-knobs', 'starts-thawed', 'cut-short', 'plateau-unreached')
_ROUNDING = 1 + 1e-9

# The guide's own edges: (rate, mosaic, mixup) before and after.
_GUIDE_EDGES = frozenset([
    ((1e-4, 0.0, 0.0), (5e-5, 0.3, 0.1)),
    ((5e-5, 0.3, 0.1), (3e-5, 0.3, 0.1)),
])


@dataclass(frozen=True)
class Finding:
    """A broken rule.

    Attributes:
        rule: Its name, for ``plan.allow``.
        text: What is wrong, the value seen and what to do.
    """
    rule: str
    text: str

    @property
    def is_error(self) -> bool:
        """Whether training is refused."""
        return self.rule in ERRORS

    def line(self) -> str:
        """The one line a person reads."""
        return f"{self.text} [rule {self.rule}; plan.allow=['{self.rule}'] switches it off]"


def check_rules(plan: Plan, cfg: Config, model: nn.Module, history: Sequence[Mapping[str, Any]] = ()) -> list[Finding]:
    """Hold a plan against the guide, once: a run asks what its tool has asked before, and gets the same answer.

    Args:
        plan: The plan.
        cfg: The whole config, for its loss, normaliser and length.
        model: The detector, to tell what a stage trains; nothing is changed.
        history: Stages the loaded weights went through before, as a run records them.

    Returns:
        The broken rules that are not switched off, in the order of the plan.

    Raises:
        UserError: If ``plan.allow`` names no rule, or a pattern of a stage matches nothing.
    """
    wrapper, loop = cfg.get('optim_wrapper') or {}, cfg.get('train_cfg') or {}
    asked = repr([plan.start, _loss_of(cfg), wrapper.get('constructor'), wrapper.get('paramwise_cfg'),
                  loop.get('max_epochs'), loop.get('val_interval'), [name for name, _ in model.named_parameters()],
                  list(history)])
    if asked in plan.answers:
        return plan.answers[asked]
    unknown = plan.allow - {*ERRORS, *WARNINGS}
    if unknown:
        raise UserError(f'plan.allow names no rule {sorted(unknown)}; there are {", ".join((*ERRORS, *WARNINGS))}')
    frozen = [frozen_of(stage, model) for stage in plan.stages]
    parts = [trained_parts(model, each) for each in frozen]
    findings = [*_levels(plan, parts, history), *_rates(plan, cfg, model, frozen), *_loss(plan, cfg),
                *_mixing(plan, model, parts), *_knobs(plan), *_length(plan, cfg),
                *_plateaus(plan, cfg)]
    return plan.answers.setdefault(asked, [each for each in findings if each.rule not in plan.allow])


def refuse_broken(findings: Sequence[Finding]) -> list[str]:
    """The warnings' lines.

    Raises:
        UserError: With the first error's line, and the names of further ones.
    """
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        others = sorted({finding.rule for finding in errors[1:]})
        raise UserError(errors[0].line() + (f'; also broken: {", ".join(others)} ({command("plan", "CFG")} shows all)'
                                            if others else ''))
    return [finding.line() for finding in findings]


def rate_limit(plan: Plan) -> float | None:
    """The highest rate any group may have, scaled rates included; None where there is no limit."""
    return MAX_FULL_RATE if plan.start == 'full' and 'rate' not in plan.allow else None


def _levels(plan: Plan, parts: Sequence[Sequence[str]], history: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """A neck that is left out when all is freed right after a head, and all that trains from the start."""
    if plan.start != 'full':
        return
    trained = [('the weights', entry['name'], entry['trained_parts']) for entry in history[-1:]]
    trained += [('stage', stage.name, each) for stage, each in zip(plan.stages, parts)]
    for (kind, name, before), (_, following, after) in pairwise(trained):
        if 'backbone' in after and before and not {'backbone', 'neck'} & set(before):
            what = (f"stage '{name}' trained only the head" if kind == 'stage' else
                    f"the weights come from stage '{name}', in which only the head trained,")
            yield Finding('skipped-level', f"{what} and stage '{following}' frees everything: put a stage between them "
                          'that frees the neck (freeze_level=1)')
    if not history and 'backbone' in parts[0] and len(plan.stages) > 1:
        yield Finding('starts-thawed', f"stage '{plan.stages[0].name}' trains everything from the first step on "
                      'pretrained weights: a new head sends large gradients into them; begin with freeze_level=2')


def _rates(plan: Plan, cfg: Config, model: nn.Module, frozen: Sequence[Frozen]) -> Iterator[Finding]:
    """Rates above the limit, multipliers and boost included."""
    limit = rate_limit(plan)
    if limit is None:
        return
    fixed = fixed_multipliers(cfg, model)
    for stage, held in zip(plan.stages, frozen):
        rates = {name: stage.lr * mult * stage_multiplier(stage, name) for name, mult in fixed.items()
                 if name not in held.parameters}
        name = max(rates, key=lambda each: rates[each])
        highest = rates[name] * stage.peak_boost
        if highest > limit * _ROUNDING:
            mult = rates[name] / stage.lr
            factors = (f' times {mult:g} (multipliers of {name})' if abs(mult - 1) > 1e-9 else '') + (
                f' times {stage.peak_boost:g} (boost)' if stage.peak_boost > 1 else '')
            yield Finding('rate', f"stage '{stage.name}': lr {stage.lr:g}{factors} is {highest:g}, and full pretrained "
                          f'weights take at most {limit:g}: lower it')


def _loss_of(cfg: Config) -> Mapping[str, Any]:
    return ((cfg.get('model') or {}).get('bbox_head') or {}).get('loss') or {}


def _loss(plan: Plan, cfg: Config) -> Iterator[Finding]:
    """A loss that is not the one the weights were trained with."""
    loss = _loss_of(cfg)
    if plan.start == 'nothing' or loss.get('type') != 'MultiGridLoss':
        return
    other = [f'{key} is {loss[key]:g}, theirs {value:g}' for key, value in RECIPE_SCALES.items()
             if loss.get(key, value) != value]
    if other:
        yield Finding('loss-scales', f'the loss scales are not those the weights were trained with: {", ".join(other)}'
                      '; take them out of model.bbox_head.loss')
    normalizers = tuple(loss.get('normalizers') or ())
    if 'grid' in normalizers:
        yield Finding('grid-normalizer', f"model.bbox_head.loss.normalizers is {normalizers}: 'grid' divides the "
                      "losses by thousands and what the weights know drowns; use ('batch',), or ('positives',)")


def _mixing(plan: Plan, model: nn.Module, parts: Sequence[Sequence[str]]) -> Iterator[Finding]:
    """Mixed images while only the head trains."""
    heads = {name for name, _ in model.named_children() if 'head' in name}
    for stage, trained in zip(plan.stages, parts):
        probs = stage.step_probs()
        mixed = [f'{name}_prob {probs[name]:g}' for name in ('mosaic', 'mixup') if probs[name] > 0]
        if mixed and set(trained) <= heads and stage.freeze_level in (2, None):
            yield Finding('mixing-while-frozen', f"stage '{stage.name}' trains only the head and has "
                          f'{" and ".join(mixed)}: frozen features cannot adapt to mixed images; set them to 0')


def _knobs(plan: Plan) -> Iterator[Finding]:
    """Several changes at one edge that is not the guide's own."""
    for before, after in pairwise(plan.stages):
        edge = tuple((stage.lr, stage.mosaic_prob, stage.mixup_prob) for stage in (before, after))
        changed = [name for name, differs in (
            ('rate', before.lr != after.lr),
            ('batch', before.batch_size != after.batch_size),
            ('augmentation', before.step_probs() != after.step_probs())) if differs]
        plain = before.batch_size == after.batch_size and (before.clean, before.probs) == (after.clean, after.probs)
        if len(changed) > 1 and not (edge in _GUIDE_EDGES and plain):
            yield Finding('many-knobs', f"from stage '{before.name}' to '{after.name}' {' and '.join(changed)} change "
                          'at once: if the losses jump, which one did it cannot be told; change one')


def _length(plan: Plan, cfg: Config) -> Iterator[Finding]:
    """A plan that is not run to its end."""
    cap = (cfg.get('train_cfg') or {}).get('max_epochs')
    require(cap is None or is_whole(cap, 1), 'train_cfg.max_epochs must be a whole number from 1 or left out', cap)
    if cap is not None and cap < plan.epochs:
        last = [stage for first, stage in zip(plan.first_epochs(), plan.stages) if first < cap][-1]
        yield Finding('cut-short', f"train_cfg.max_epochs={cap} ends the plan of {plan.epochs} epochs in stage "
                      f"'{last.name}'; leave max_epochs out to run all of it")


def _plateaus(plan: Plan, cfg: Config) -> Iterator[Finding]:
    """Stages that end before their rate could fall once."""
    interval = (cfg.get('train_cfg') or {}).get('val_interval', 1)
    for index, stage in enumerate(plan.stages):
        plateau, until = stage.plateau, plan.until(index)
        if plateau is None:
            continue
        text = (f"stage '{stage.name}': the rate falls when {plateau.metric} has not improved for {plateau.patience} "
                'validations, and the stage ')
        if until is not None and until.metric == plateau.metric and until.patience <= plateau.patience:
            yield Finding('plateau-unreached', f'{text}ends when it has not for {until.patience}: give plateau less '
                          'patience, or until or plan.early_stopping more')
        elif stage.epochs // interval <= plateau.patience:
            yield Finding('plateau-unreached', f'{text}has {stage.epochs // interval}: give plateau less patience, or '
                          'validate more often (train_cfg.val_interval)')
