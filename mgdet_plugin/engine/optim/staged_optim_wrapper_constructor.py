"""The optimizer's groups: everything that may ever have a rate of its own, decided once."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.nn import GroupNorm, LayerNorm
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import Parameter

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.freezing import check_patterns, matches, unwrap
from mgdet_plugin.plan.plan import Stage, build_plan

OPTIONS = ('stages', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'custom_keys', 'layer_decay')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class StagedOptimWrapperConstructor:
    """Build the optimizer over *all* parameters, in one group for every combination of part, rule and multipliers.

    mmengine's default constructor drops parameters that are frozen when it runs, and they never train again; and a
    key with ``lr_mult`` switches its rules for norms and biases off. Here the rules for rate and for decay multiply
    independently.

    Args:
        optim_wrapper_cfg: Config of the wrapper with its ``optimizer``. The optimizer's ``lr`` comes from the plan.
        paramwise_cfg: ``bias_lr_mult`` and ``bias_decay_mult`` (of biases outside norms), ``norm_decay_mult``,
            ``custom_keys`` (name or pattern -> ``lr_mult``, ``decay_mult``; the longest match counts) and
            ``layer_decay`` (factor a step of depth, from the last block of the backbone down to its first). The
            train loop adds ``stages``.

    Raises:
        UserError: If an option is unknown or a rate contradicts the plan.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        if 'optimizer' not in self.wrapper_cfg:
            raise UserError(f'optim_wrapper needs an optimizer, got {dict(optim_wrapper_cfg)}')
        self.optimizer_cfg = dict(self.wrapper_cfg.pop('optimizer'))
        self.rules = dict(paramwise_cfg or {})
        unknown = set(self.rules) - set(OPTIONS)
        if unknown:
            raise UserError(f'optim_wrapper.paramwise_cfg has no option {sorted(unknown)}; it takes {OPTIONS[1:]}')
        stages = self.rules.pop('stages', None)
        self.stages: tuple[Stage, ...] = build_plan(stages) if stages else ()
        self._check_rules()

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """The optimizer of a model, wrapped or not.

        Raises:
            UserError: If a pattern matches nothing or the rate is given twice.
        """
        model = unwrap(model)
        rate = self.base_rate()
        check_patterns(self.rules.get('custom_keys', {}), model, 'paramwise_cfg.custom_keys')
        decay = self.optimizer_cfg.get('weight_decay', 0) or 0
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, parameter, is_norm in all_parameters(model):
            lr_mult, decay_mult = self.multipliers(name, is_norm, model)
            stage_mults = tuple(stage_multiplier(stage, name) for stage in self.stages)
            label = self._label(name)
            group = groups.setdefault((label, lr_mult, decay_mult, stage_mults), dict(
                params=[], name=label, lr=rate * lr_mult * (stage_mults[0] if stage_mults else 1.0),
                weight_decay=decay * decay_mult, lr_mult=lr_mult, stage_mults=list(stage_mults)))
            group['params'].append(parameter)
        for group in groups.values():
            group['planned_lr'] = group['lr']
        _number_names(list(groups.values()))
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, 'lr': rate, 'params': list(groups.values())})
        self.wrapper_cfg.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(self.wrapper_cfg, default_args=dict(optimizer=optimizer))

    def _check_rules(self) -> None:
        """Refuse factors that make no sense.

        Raises:
            UserError: With the value seen.
        """
        decay = self.rules.get('layer_decay')
        if decay is not None and not 0 < decay <= 1:
            raise UserError(f'paramwise_cfg.layer_decay must be above 0 and at most 1, got {decay}')
        single = ('bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult')
        factors: dict[str, Any] = {key: self.rules[key] for key in single if key in self.rules}
        for pattern, entry in (self.rules.get('custom_keys') or {}).items():
            unknown = set(entry) - {'lr_mult', 'decay_mult'}
            if unknown:
                raise UserError(f"paramwise_cfg.custom_keys['{pattern}'] has no {sorted(unknown)}; it takes lr_mult "
                                'and decay_mult')
            factors.update({f"custom_keys['{pattern}'].{key}": value for key, value in entry.items()})
        for name, value in factors.items():
            if name.endswith('lr_mult') and not value > 0:
                raise UserError(f'paramwise_cfg.{name} must be above 0, got {value}; to hold a part still freeze it '
                                'in a stage: a rate of 0 lets its running statistics drift')
            if not 0 <= value < float('inf'):
                raise UserError(f'paramwise_cfg.{name} must be at least 0, got {value}')

    def base_rate(self) -> float:
        """The rate of the first stage.

        Raises:
            UserError: If the optimizer's config says another one.
        """
        given = self.optimizer_cfg.get('lr')
        if not self.stages:
            if given is None:
                raise UserError('optim_wrapper.optimizer has no lr and there is no plan; set stages in the config, and '
                                "train_cfg.type='StagedTrainLoop'")
            return given
        planned = self.stages[0].lr
        if given is not None and given != planned:
            raise UserError(f"optim_wrapper.optimizer.lr is {given}, the plan's first stage has lr {planned}: rates "
                            'come from stages; take lr out of the optimizer')
        return planned

    def multipliers(self, name: str, is_norm: bool, model: nn.Module) -> tuple[float, float]:
        """Factors on rate and decay of a parameter that hold in every stage."""
        is_bias = name.endswith('.bias') and not is_norm
        lr_mult = self.rules.get('bias_lr_mult', 1.0) if is_bias else 1.0
        decay_mult = 1.0
        if is_norm:
            decay_mult = self.rules.get('norm_decay_mult', 1.0)
        elif is_bias:
            decay_mult = self.rules.get('bias_decay_mult', 1.0)
        keys = self.rules.get('custom_keys', {})
        best = longest_match(name, keys)
        if best is not None:
            lr_mult *= keys[best].get('lr_mult', 1.0)
            decay_mult *= keys[best].get('decay_mult', 1.0)
        return lr_mult * self.depth_factor(name, model), decay_mult

    def depth_factor(self, name: str, model: nn.Module) -> float:
        """Layer-wise decay: the last block of the backbone gets the factor once, its first one most often."""
        decay = self.rules.get('layer_decay')
        if decay is None or not name.startswith('backbone.'):
            return 1.0
        blocks = backbone_blocks(model)
        return float(decay**(len(blocks) - blocks.index(name.split('.')[1])))

    def _label(self, name: str) -> str:
        """What a group is called: the part, with layer decay the block of the backbone."""
        part, *rest = name.split('.')
        return f'{part}.{rest[0]}' if part == 'backbone' and self.rules.get('layer_decay') is not None else part


def check_groups(optim_wrapper: OptimWrapper, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume an optimizer whose groups are others.

    Raises:
        UserError: With both numbers of groups.
    """
    saved = (checkpoint.get('optimizer') or {}).get('param_groups')
    groups = getattr(getattr(optim_wrapper, 'optimizer', None), 'param_groups', None)
    if saved is None or groups is None:
        return
    if [len(group['params']) for group in saved] != [len(group['params']) for group in groups]:
        raise UserError(f"the checkpoint's optimizer has {len(saved)} groups of parameters and the plan makes "
                        f'{len(groups)}, or divides them otherwise: lr_mult or paramwise_cfg was changed; resume with '
                        'what it was made with, or start a new run from its weights (load_from)')


def backbone_blocks(model: nn.Module) -> list[str]:
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


def _number_names(groups: Sequence[dict[str, Any]]) -> None:
    """Tell groups of one part apart by a number."""
    seen: dict[str, int] = {}
    for group in groups:
        seen[group['name']] = seen.get(group['name'], 0) + 1
        if seen[group['name']] > 1:
            group['name'] += f'_{seen[group["name"]]}'
