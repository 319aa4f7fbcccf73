"""What the parts of a run take, and how long its stages may be for it to end within a time."""
from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from mmengine.config import Config

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.engine.fit.probe import measured
from mgdet_plugin.engine.hooks.console_hook import in_words

_HOUR = 3600
_MOST, _SHARE = 10.0, 0.05  # seconds for the steps of a stage; of the whole time for those of all


def fit_hours(cfg: Config, hours: float, begun: float) -> tuple[list[int], str]:
    """Epochs of each stage with which the run ends within a time, in the proportions of the plan.

    Args:
        cfg: The whole config.
        hours: The time, from ``begun`` on.
        begun: Of ``time.monotonic``: when the command began.

    Returns:
        Epochs of each stage, and what to say of it.

    Raises:
        UserError: One epoch of each stage takes longer.
    """
    planned = [int(stage['epochs']) for stage in cfg.stages]
    costs = Costs(cfg, measured(cfg, dict(seconds=min(_MOST, _SHARE * hours * _HOUR / len(planned)))))
    left = hours * _HOUR - (time.monotonic() - begun)
    least = costs.seconds([1] * len(planned))
    if least > left:
        needed = (least + hours * _HOUR - left) / _HOUR
        raise UserError(f'--hours {hours:g}: one epoch of each of the {len(planned)} stages, with what stands around '
                        f'them, takes about {in_words(least)}, and {in_words(max(0.0, left))} are left; give at least '
                        f'{math.ceil(needed * 1000) / 1000:g}, or train a smaller model, input or set')
    epochs = fitted_epochs(planned, costs, left)
    steps = ', '.join(f"{stage['name']} {length} epoch{'s' if length > 1 else ''} of {each['iterations']} steps of "
                      f"{each['step']:.3g} s" for stage, length, each in zip(cfg.stages, epochs, costs.stages))
    said = (f'--hours {hours:g}: {steps}; a validation takes {costs.validation:.3g} s, a checkpoint '
            f'{costs.checkpoint:.2g} s: about {in_words(costs.seconds(epochs))} of the {in_words(left)} that are left')
    return epochs, said


class Costs:
    """What the parts of a run take.

    Args:
        cfg: The whole config.
        found: Of :func:`mgdet_plugin.engine.fit.probe.measure_stages`.

    Attributes:
        stages: Each stage's ``step`` in seconds and ``iterations`` an epoch.
        validation: Seconds of one.
        checkpoint: Seconds of an epoch's end.
        around: Seconds before the first epoch and after the last.
    """

    def __init__(self, cfg: Config, found: Sequence[Mapping[str, float]]) -> None:
        self.stages = found
        self.validation = found[0].get('validation', 0.0)
        self.checkpoint = found[0]['checkpoint']
        hooks = cfg.get('default_hooks') or {}
        self.saved_every = max(1, (hooks.get('checkpoint') or {}).get('interval', 1))
        self.validated_every = (cfg.get('train_cfg') or {}).get('val_interval', 1)
        guard = next((hook for hook in hooks.values() if hook and hook.get('type') == 'DriftGuardHook'), None)
        more = 0 if guard is None else 1 + bool(guard.get('random_start', True))  # what it measures before training
        more += 2 if cfg.get('evaluate', True) and self.validation else 0  # the weights before and after, at the end
        self.around = found[0]['build'] + found[0]['first'] + more * self.validation

    def seconds(self, epochs: Sequence[int]) -> float:
        """Of a whole run with stages of so many epochs."""
        total = sum(epochs)
        interval = min(self.validated_every, *epochs)
        return (self.around + math.ceil(total / interval) * self.validation
                + math.ceil(total / self.saved_every) * self.checkpoint
                + sum(length * each['iterations'] * each['step'] for length, each in zip(epochs, self.stages)))


def fitted_epochs(planned: Sequence[int], costs: Costs, seconds: float) -> list[int]:
    """The longest stages in the proportions of a plan, at least one epoch each, that take no more than some seconds.

    Stages of ``floor(factor * planned)`` epochs, the factor as large as fits; then one epoch more each, the stage that
    is furthest below its proportion first, as long as that fits.
    """

    def scaled(factor: float) -> list[int]:
        return [max(1, math.floor(factor * each)) for each in planned]

    low, high = 0.0, 1.0
    while costs.seconds(scaled(high)) <= seconds:
        low, high = high, 2 * high
    while high - low > 1e-3 / max(planned):
        middle = (low + high) / 2
        low, high = (middle, high) if costs.seconds(scaled(middle)) <= seconds else (low, middle)
    epochs = scaled(low)
    for index in sorted(range(len(planned)), key=lambda each: epochs[each] / planned[each]):
        longer = [length + (each == index) for each, length in enumerate(epochs)]
        if longer[index] <= math.ceil(high * planned[index]) and costs.seconds(longer) <= seconds:
            epochs = longer
    return epochs
