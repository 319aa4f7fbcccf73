"""L2-SP: a pull toward the weights a run started from (Li et al., arXiv 1802.01483, section 3.2)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from mgdet_plugin.common.errors import UserError, is_number, require
from mgdet_plugin.keep.start_weights import save_start, start_state
from mgdet_plugin.plan.freezing import check_patterns, unwrap
from mgdet_plugin.plan.rates import longest_match

KEY = 'train/l2_sp'
_LOG_INTERVAL = 50  # where nothing logs


@HOOKS.register_module()
class L2SPHook(Hook):
    """Add the gradient of ``strength / 2 * ||w - w_start||^2`` to that of the loss, before every step of the optimizer.

    Weight decay pulls toward zero, away from what was learned; this pulls toward it. Set ``weight_decay`` to 0 for what
    is pulled. The term goes through the optimizer with the loss's gradient, as the paper has it, so Adam scales it too.

    It is added once a step, by a hook of the optimizer itself: after the gradients of several iterations were gathered,
    after mixed precision was taken out of them, and *after* ``clip_grad``. So the clip holds for the loss alone: a
    large loss cannot scale the pull down, and the pull counts neither in the limit nor in ``grad_norm``. A step that
    mixed precision skips has none. What is frozen has none. Running statistics have no gradient, so nothing pulls them:
    to hold those too freeze the normalisation layers (``freeze=['*.bn']`` of a stage).

    The start weights are those of the run's first step, in ``<work_dir>/start.pth``; a resumed run reads them there. At
    every logging interval ``train/l2_sp`` is the penalty of what trains, and ``train/l2_sp_<part>`` its parts where
    there are several.

    Args:
        strength: Of everything, or name or pattern -> strength (patterns as in stages, the longest match counts;
            what matches none is not pulled). The paper takes values from 0.001 to 1.

    Raises:
        UserError: If a strength is no number of at least 0.
    """
    priority = 75  # after StagedUnfreezeHook (LOW, 70), which knows the name of the run

    def __init__(self, strength: float | Mapping[str, float]) -> None:
        self.strength = check_strength(strength)
        self.anchors: list[Anchor] = []
        self._handle: RemovableHandle | None = None
        self._interval = _LOG_INTERVAL

    def before_train(self, runner: Runner) -> None:
        """Take or read the start weights and register with the optimizer.

        Raises:
            UserError: A pattern matches nothing, there are several optimizers, or a resumed run's file is missing.
        """
        model = unwrap(runner.model)
        if isinstance(self.strength, Mapping):
            check_patterns(self.strength, model, 'L2SPHook.strength')
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            raise UserError(f'L2SPHook works with one optimizer, and this run has a '
                            f'{type(runner.optim_wrapper).__name__}; take the hook out')
        save_start(runner)
        self.anchors = anchors(model, start_state(runner), self.strength)
        self._interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), _LOG_INTERVAL)
        self.after_train(runner)
        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(self._pull)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Log the penalty where this iteration is logged; here, because the logger may run before this hook later."""
        if not (self.every_n_inner_iters(batch_idx, self._interval)
                or self.end_of_epoch(runner.train_dataloader, batch_idx)):
            return
        parts = penalties(self.anchors)
        runner.message_hub.update_scalar(KEY, sum(parts.values()))
        for part, value in parts.items() if len(parts) > 1 else ():
            runner.message_hub.update_scalar(f'{KEY}_{part}', value)

    def after_train(self, runner: Runner) -> None:
        """Leave the optimizer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _pull(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Before a step; a fused optimizer takes the scale of mixed precision out in it, and says it in ``grad_scale``.
        """
        pull(self.anchors, getattr(optimizer, 'grad_scale', None))


class Anchor(NamedTuple):
    """A parameter, where it started, the part it is of (backbone, neck, bbox_head) and the strength of its pull."""
    parameter: nn.Parameter
    start: Tensor
    part: str
    strength: float


def anchors(model: nn.Module, start: Mapping[str, Tensor], strength: float | Mapping[str, float]) -> list[Anchor]:
    """Copies of the start weights of what is pulled.

    Args:
        model: The model, not wrapped.
        start: Name -> tensor, with every parameter of the model.
        strength: As :class:`L2SPHook` takes it.
    """
    strengths = ((name, parameter, strength_of(name, strength)) for name, parameter in model.named_parameters())
    return [Anchor(parameter, start[name].detach().to(parameter, copy=True), name.split('.')[0], value)
            for name, parameter, value in strengths if value > 0]


def strength_of(name: str, strength: float | Mapping[str, float]) -> float:
    """Strength of the pull on a parameter, 0 where no pattern matches."""
    if not isinstance(strength, Mapping):
        return strength
    best = longest_match(name, strength)
    return 0.0 if best is None else strength[best]


@torch.no_grad()
def pull(pulled: Sequence[Anchor], grad_scale: Tensor | None = None) -> None:
    """Add strength * (w - w_start) to the gradients of what trains, in place.

    Args:
        pulled: Of :func:`anchors`.
        grad_scale: What the gradients are multiplied by.
    """
    gradients = [each.parameter.grad for each in pulled
                 if each.parameter.requires_grad and each.parameter.grad is not None]
    stepping = [each for each in pulled if each.parameter.requires_grad and each.parameter.grad is not None]
    if not stepping:
        return
    moved = torch._foreach_sub([each.parameter for each in stepping], [each.start for each in stepping])
    if grad_scale is not None:
        torch._foreach_mul_(moved, grad_scale.to(moved[0]))
    torch._foreach_mul_(moved, [each.strength for each in stepping])
    torch._foreach_add_(gradients, moved)


@torch.no_grad()
def penalties(pulled: Sequence[Anchor]) -> dict[str, float]:
    """Part -> strength / 2 * ||w - w_start||^2 over what trains; 0.0 for a part of which nothing trains."""
    found = {each.part: 0.0 for each in pulled}
    training = [each for each in pulled if each.parameter.requires_grad]
    if training:
        norms = torch._foreach_norm(torch._foreach_sub([each.parameter for each in training],
                                                       [each.start for each in training]))
        for each, square in zip(training, torch.stack(list(norms)).double().square().tolist()):
            found[each.part] += each.strength / 2 * square
    return found


def check_strength(strength: Any) -> float | dict[str, float]:
    """Refuse a strength that is no number, negative, infinite or NaN.

    Raises:
        UserError: With the value seen.
    """
    entries = dict(strength) if isinstance(strength, Mapping) else {'': strength}
    if not entries:
        raise UserError('L2SPHook.strength is empty, so nothing would be pulled; give a number, or name -> number')
    for name, value in entries.items():
        require(is_number(value) and 0 <= value < float('inf'),
                f'L2SPHook.strength{[name] if name else ""} must be a number of at least 0', value)
    return {name: float(value) for name, value in entries.items()} if isinstance(strength, Mapping) else float(strength)
