"""The rate of every group of parameters, as pure functions of the plan and of how far a run has come.

``stage rate x stage multiplier of the part x rules for bias and depth x warmup, boost or cosine``, held to the plan's
limit. Groups are decided once, over *all* parameters: mmengine's own constructor drops those that are frozen when it
runs, and they never train again; and a key with ``lr_mult`` switches its rules for norms and biases off. Here the
rules for rate and for decay multiply independently.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from torch import nn
from torch.nn import GroupNorm, LayerNorm
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import Parameter

from mgdet_plugin.common.errors import UserError, require
from mgdet_plugin.plan.freezing import check_patterns, matches
from mgdet_plugin.plan.plan import Plan, Stage

OPTIONS = ('bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'custom_keys', 'layer_decay')
CONSTRUCTOR = 'StagedOptimWrapperConstructor'


@dataclass(frozen=True)
class RateRules:
    """Factors on rate and decay that hold in every stage: ``paramwise_cfg`` of a config.

    Attributes:
        bias_lr_mult: On the rate of biases outside norms.
        bias_decay_mult: On their decay.
        norm_decay_mult: On the decay of normalisation layers.
        custom_keys: Name or pattern -> ``lr_mult``, ``decay_mult``; the longest match counts.
        layer_decay: Factor a step of depth, from the last block of the backbone down to its first.
    """
    bias_lr_mult: float = 1.0
    bias_decay_mult: float = 1.0
    norm_decay_mult: float = 1.0
    custom_keys: Mapping[str, Mapping[str, float]] | None = None
    layer_decay: float | None = None

    @classmethod
    def build(cls, given: Mapping[str, Any] | None) -> RateRules:
        """Rules of a config entry.

        Raises:
            UserError: An option is unknown or a factor makes no sense.
        """
        unknown = set(given or {}) - set(OPTIONS)
        if unknown:
            raise UserError(f'optim_wrapper.paramwise_cfg has no option {sorted(unknown)}; it takes {OPTIONS}')
        return cls(**(given or {}))

    def __post_init__(self) -> None:
        decay = self.layer_decay
        require(decay is None or 0 < decay <= 1, 'paramwise_cfg.layer_decay must be above 0 and at most 1', decay)
        factors: dict[str, Any] = {key: getattr(self, key) for key in OPTIONS[:3]}
        for pattern, entry in (self.custom_keys or {}).items():
            unknown = set(entry) - {'lr_mult', 'decay_mult'}
            if unknown:
                raise UserError(f"paramwise_cfg.custom_keys['{pattern}'] has no {sorted(unknown)}; it takes lr_mult "
                                'and decay_mult')
            factors.update({f"custom_keys['{pattern}'].{key}": value for key, value in entry.items()})
        for name, value in factors.items():
            if name.endswith('lr_mult') and not value > 0:
                raise UserError(f'paramwise_cfg.{name} must be above 0, got {value}; to hold a part still freeze it '
                                'in a stage: a rate of 0 lets its running statistics drift')
            require(0 <= value < float('inf'), f'paramwise_cfg.{name} must be at least 0', value)

    def multipliers(self, name: str, is_norm: bool, model: nn.Module) -> tuple[float, float]:
        """Factors on rate and decay of a parameter."""
        is_bias = name.endswith('.bias') and not is_norm
        lr_mult = self.bias_lr_mult if is_bias else 1.0
        decay_mult = self.norm_decay_mult if is_norm else self.bias_decay_mult if is_bias else 1.0
        keys = self.custom_keys or {}
        best = longest_match(name, keys)
        if best is not None:
            lr_mult *= keys[best].get('lr_mult', 1.0)
            decay_mult *= keys[best].get('decay_mult', 1.0)
        if self.layer_decay is not None and name.startswith('backbone.'):
            blocks = depth_order(model)  # the last block gets the factor once, the first one most often
            lr_mult *= self.layer_decay**(len(blocks) - blocks.index(name.split('.')[1]))
        return lr_mult, decay_mult


def parameter_groups(model: nn.Module, rules: RateRules, stages: Sequence[Stage], rate: float,
                     decay: float = 0.0) -> list[dict[str, Any]]:
    """The optimizer's groups: one for every combination of part, rule and multipliers, over all parameters.

    Args:
        model: The detector, not wrapped.
        rules: What holds in every stage.
        stages: The plan's; none where there is no plan.
        rate: Of the first stage, before multipliers.
        decay: Weight decay, before multipliers.

    Raises:
        UserError: A pattern matches nothing.
    """
    check_patterns(rules.custom_keys or {}, model, 'paramwise_cfg.custom_keys')
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter, is_norm in all_parameters(model):
        lr_mult, decay_mult = rules.multipliers(name, is_norm, model)
        stage_mults = tuple(stage_multiplier(stage, name) for stage in stages)
        part, *rest = name.split('.')
        label = f'{part}.{rest[0]}' if part == 'backbone' and rules.layer_decay is not None else part
        lr = rate * lr_mult * (stage_mults[0] if stage_mults else 1.0)
        group = groups.setdefault((label, lr_mult, decay_mult, stage_mults), dict(
            params=[], name=label, lr=lr, planned_lr=lr, weight_decay=decay * decay_mult, lr_mult=lr_mult,
            stage_mults=list(stage_mults)))
        group['params'].append(parameter)
    seen: dict[str, int] = {}
    for group in groups.values():  # groups of one part are told apart by a number
        seen[group['name']] = seen.get(group['name'], 0) + 1
        if seen[group['name']] > 1:
            group['name'] += f'_{seen[group["name"]]}'
    return list(groups.values())


def base_rate(plan: Plan | None, given: float | None) -> float:
    """The rate of the first stage, which the optimizer's config may give, too.

    Raises:
        UserError: There is no rate, or the optimizer's config says another one.
    """
    if plan is None:
        if given is None:
            raise UserError('optim_wrapper.optimizer has no lr and there is no plan; set stages in the config, and '
                            "train_cfg.type='StagedTrainLoop'")
        return given
    planned = plan.stages[0].lr
    if given is not None and given != planned:
        raise UserError(f"optim_wrapper.optimizer.lr is {given}, the plan's first stage has lr {planned}: rates "
                        'come from stages; take lr out of the optimizer')
    return planned


@dataclass(frozen=True)
class PlannedRates:
    """Everything the rates of a run's groups follow from.

    Attributes:
        plan: The plan.
        groups: Of :func:`parameter_groups`; one that is mmengine's own has no factors.
        limit: The highest rate a group that trains may have, or None.
        scale: Factor on all rates by the batch (``auto_scale_lr``); 1 where they are not scaled.
        batch_size: Images a process and iteration that ``scale`` is for; None where a stage's own batch changes
            nothing.
    """
    plan: Plan
    groups: Sequence[Mapping[str, Any]]
    limit: float | None = None
    scale: float = 1.0
    batch_size: int | None = None

    def peaks(self, index: int, trains: Sequence[bool]) -> list[float]:
        """The rate of each group in a stage before warmup, boost and cosine.

        ``trains`` says of each whether anything of it trains: what is frozen does not count for the limit.
        """
        stage = self.plan.stages[index]
        own = stage.batch_size
        scale = self.scale * own / self.batch_size if own and self.batch_size else self.scale
        rates = [stage.lr * scale * group.get('lr_mult', 1.0) * (group['stage_mults'][index] if group.get(
            'stage_mults') else 1.0) for group in self.groups]
        if self.limit is None:
            return rates
        # one factor for all, so that multipliers keep their meaning
        highest = max((rate for rate, counts in zip(rates, trains) if counts), default=0.0)
        held = min(1.0, self.limit / (highest * stage.peak_boost)) if highest else 1.0
        return [rate * held for rate in rates]

    def at(self, index: int, trains: Sequence[bool], done: float, damping: float = 1.0) -> list[float]:
        """The rate of each group after ``done`` epochs of a stage, lowered by a factor."""
        factor = self.plan.stages[index].factor(done) * damping
        return [peak * factor for peak in self.peaks(index, trains)]


def fixed_multipliers(cfg: Config, model: nn.Module) -> dict[str, float]:
    """Name of a parameter -> the factor on its rate that holds in every stage."""
    wrapper: Any = cfg.get('optim_wrapper') or {}
    rules = RateRules.build(wrapper.get('paramwise_cfg') if wrapper.get('constructor') == CONSTRUCTOR else None)
    return {name: rules.multipliers(name, is_norm, model)[0] for name, _, is_norm in all_parameters(model)}


def depth_order(model: nn.Module) -> list[str]:
    """Names of the backbone's children that hold parameters, in the order of depth."""
    return [name for name, child in model.get_submodule('backbone').named_children()
            if next(child.parameters(), None) is not None]


def longest_match(name: str, patterns: Mapping[str, Any]) -> str | None:
    """The longest pattern that matches a name, the first in the alphabet among equals."""
    return min((pattern for pattern in patterns if matches(name, pattern)),
               key=lambda pattern: (-len(pattern), pattern), default=None)


def stage_multiplier(stage: Stage, name: str) -> float:
    """A stage's factor on the rate of a parameter."""
    best = longest_match(name, stage.lr_mult)
    return 1.0 if best is None else float(stage.lr_mult[best])


def all_parameters(model: nn.Module) -> list[tuple[str, Parameter, bool]]:
    """Name, parameter and whether it belongs to a normalisation layer; shared parameters once."""
    norms = {id(parameter) for module in model.modules() if isinstance(module, (_NormBase, GroupNorm, LayerNorm))
             for parameter in module.parameters(recurse=False)}
    return [(name, parameter, id(parameter) in norms) for name, parameter in model.named_parameters()]
