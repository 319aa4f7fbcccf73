"""Whether a run fine-tuned its model or untrained it: five checks on its record."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mgdet_plugin.common.guard_record import AGREEMENT, LABELS, OLD, Validation, keeps, kept_share, merit
from mgdet_plugin.common.metric_names import kind_of
from mgdet_plugin.common.records import finite
from mgdet_plugin.runs.run import LOSS, Run, read_run

NAMES = ('loss-below-random', 'losses-within-band', 'performance-kept', 'no-nan', 'old-kept')
PASS, FAIL, NOT_MEASURED = 'PASS', 'FAIL', 'NOT MEASURED'
HOW = ('train with keep=dict(images=FOLDER), pictures of what the weights were trained on, no labels; or follow a '
       'labelled set of them, val_cfg.others=dict(old=...)')
NO_GUARD = 'no guard (default hook drift_guard) measured what it started from'
ONLY_BACKBONE = 'only the backbone was pretrained'
NOTHING_TO_KEEP = dict(backbone=ONLY_BACKBONE, nothing='nothing was pretrained')
RESULTS = {True: PASS, False: FAIL, None: 'n/a'}
_ROUNDING = 1e-9
_UNKNOWN = 'not judged: '


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: Its name.
        passed: Whether the run passes; None where that is not asked or cannot be judged, which ``line`` says.
        line: One line with the figures it was judged by.
        figures: The same figures, by name.
        way: How to measure what was not measured and should be; empty else.
    """
    name: str
    passed: bool | None
    line: str
    figures: dict[str, Any] = field(default_factory=dict)
    way: str = ''


def check_run(run: Run | str | Path) -> list[Check]:
    """Judge a run: the loss against a random start, guarded losses and the metric against the pretrained weights, NaN;
    and what is left of the old domain's metric.

    Raises:
        UserError: The work folder holds no record that can be read.
    """
    run = run if isinstance(run, Run) else read_run(run)
    last = run.last
    if not run.recorded:
        band = f'not asked: {NOTHING_TO_KEEP[run.start]}' if run.start else f'not judged: {NO_GUARD}'
        return [_training_fell(run), Check(NAMES[1], None, band), _detects(run), _no_nan(run),
                _old_kept(run)]
    if last is None:
        without = run.ended == 'plan' and not run.pretrained and not run.random  # which a validation set gives
        passed, line = (None, 'not judged: the run had no validation') if without else (False, 'no validation yet')
        return [*(Check(name, passed, line) for name in NAMES[:3]), _no_nan(run), _old_kept(run)]
    return [_below_random(run, last), _within_band(run, last), _performance_kept(run, last), _no_nan(run),
            _old_kept(run)]


def checks_text(run: Run, checks: list[Check]) -> str:
    """The checks for a person, one a line, and the verdict."""
    lines = [f'{RESULTS[each.passed]:<4}  {each.name:<20} {each.line}' for each in checks]
    return '\n'.join([*lines, f'verdict: {verdict_line(checks)}'])


def checks_json(run: Run, checks: list[Check]) -> dict[str, Any]:
    """The checks for machines; null stands for what is not finite."""
    return dict(
        work_dir=str(run.folder), verdict=verdict(checks), ended=run.ended,
        checks=[dict(name=each.name, passed=each.passed, line=each.line, figures=finite(each.figures))
                for each in checks])


def verdict(checks: Sequence[Check]) -> str:
    """FAIL if a check failed, NOT MEASURED if one that should be judged could not, else PASS."""
    if any(each.passed is False for each in checks):
        return FAIL
    return NOT_MEASURED if any(each.way for each in checks) else PASS


def verdict_line(checks: Sequence[Check]) -> str:
    """The verdict; where something was not measured why, and how to measure it."""
    result = verdict(checks)
    missing = [f'{each.line.removeprefix(_UNKNOWN)}; {each.way}' for each in checks if each.way]
    return f'{result}: whether the model was untrained: {missing[0]}' if result == NOT_MEASURED else result


def _below_random(run: Run, last: Validation) -> Check:
    """The loss is below a random start's; that of the loaded weights need not be, on images of another domain."""
    now, random, before = (figures.get(LOSS, math.nan) for figures in (last.metrics, run.random, run.pretrained))
    figures = dict(epoch=last.epoch, loss=now, random=random, pretrained=before)
    line = f'{LOSS} {now:.4g} at epoch {last.epoch}' + ''.join(
        f', {what} {value:.4g}' for what, value in (('random start', random), ('pretrained', before))
        if not math.isnan(value))
    fault = ('; the loss of a random start was not measured' if math.isnan(random) else
             '' if now < random else '; the run ends no better than a random start')
    return Check(NAMES[0], not fault, line + fault, figures)


def _within_band(run: Run, last: Validation) -> Check:
    """Every guarded loss is within the limit of its pretrained value, and the guard did not stop the run."""
    top = 1 + run.limit
    passed, line, figures = _band_figures(run, last, top)
    if run.ended == 'guard':
        stop = next((each for each in reversed(run.events) if 'stop' in each.actions), None)
        at = stop.iter if stop else last.iter
        passed, line = False, f'{line}; the guard stopped the run at iteration {at}'
        figures = dict(figures, stopped_at=at)
    return Check(NAMES[1], passed, line, figures)


def _band_figures(run: Run, last: Validation, top: float) -> tuple[bool | None, str, dict[str, Any]]:
    """Whether the last ratios are in the band, a line about them, and figures."""
    if run.start == 'nothing':
        return False, 'started from nothing: there are no pretrained losses to keep', {}
    if run.start == 'backbone':
        return None, f'not asked: {ONLY_BACKBONE}', {}
    if not run.guarded:
        return False, 'no loss is guarded; name them in the hook drift_guard', {}
    ratios = {name: run.ratio(name, last) for name in run.guarded}
    best = kept(run)
    figures: dict[str, Any] = dict(epoch=last.epoch, limit=top, ratios=ratios, best_epoch=best.epoch,
                                   best_ratios={name: run.ratio(name, best) for name in run.guarded})
    unknown = [name for name in run.guarded if f'val/{name}' not in run.pretrained]
    if unknown:
        return False, f'no pretrained value of {", ".join(unknown)} was measured', figures
    over = list(dict.fromkeys(f'{name} at epoch {each.epoch}' for each in (last, best) for name in run.guarded
                              if not run.ratio(name, each) <= top * (1 + _ROUNDING)))  # NaN is over, too
    worst, name, epoch = max(((run.ratio(each, validation), each, validation.epoch) for each in run.guarded
                              for validation in run.validations),
                             key=lambda found: math.inf if math.isnan(found[0]) else found[0])
    figures.update(worst=worst, worst_loss=name, worst_epoch=epoch)
    listed = ', '.join(f'{each} {ratio:.3g}' for each, ratio in ratios.items())
    line = (f'{listed} times pretrained at epoch {last.epoch}, at most {top:.3g} allowed; worst of the run '
            f'{worst:.3g} ({name}, epoch {epoch})')
    return not over, line + (f'; too high: {", ".join(over)}' if over else ''), figures


def _performance_kept(run: Run, last: Validation) -> Check:
    """The best checkpoint's metric is at least what the pretrained weights had on the same images, and not 0."""
    if run.start == 'nothing':
        return Check(NAMES[2], False, 'started from nothing: there is no pretrained baseline')
    if run.start == 'backbone':
        reached = f'; {_best_line(run, last)}' if run.metric else ''
        return Check(NAMES[2], None, f'not asked: {ONLY_BACKBONE}{reached}')
    if not run.pretrained:
        return Check(NAMES[2], False, 'the pretrained baseline was not measured')
    if not run.metric:
        return Check(NAMES[2], None, 'not asked: the validation gives no metric')
    best = kept(run)
    value, end = (each.metrics.get(run.metric, 0.0) for each in (best, last))
    before = run.pretrained.get(run.metric, 0.0)
    figures = dict(metric=run.metric, epoch=best.epoch, value=value, pretrained=before, last=end, last_epoch=last.epoch)
    line = _best_line(run, last, f', pretrained {before:.3f}{_nothing(run, run.pretrained)}')
    if not value > 0:
        line += '; a model that detects nothing right has kept nothing'
    return Check(NAMES[2], value >= before and value > 0, line, figures)


def _best_line(run: Run, last: Validation, before: str = '') -> str:
    """The main metric at its best and at the end."""
    best = kept(run)
    value, end = (each.metrics.get(run.metric, 0.0) for each in (best, last))
    return (f'{run.metric} {value:.3f} at epoch {best.epoch}, the best{_nothing(run, best.metrics)}{before}; '
            f'at the end {end:.3f} (epoch {last.epoch})')


def _training_fell(run: Run) -> Check:
    """Without a guard's record: the training loss is lower than it was at first, near which a random start is."""
    losses = run.training.get('loss', np.array([]))
    losses = losses[np.isfinite(losses)]
    if len(losses) < 2:
        why = '' if run.start else f'{NO_GUARD}, and '
        return Check(NAMES[0], None, f'not judged: {why}fewer than two training losses are logged')
    first, end = float(losses[0]), float(np.median(losses[-max(1, len(losses) // 10):]))
    line = f'training loss {end:.4g} at the end, {first:.4g} first logged' + ('' if run.start else f'; {NO_GUARD}')
    return Check(NAMES[0], end < first, line + ('' if end < first else '; it has not fallen'),
                 dict(loss=end, first=first))


def _detects(run: Run) -> Check:
    """Without a guard's record: whether anything is detected; what was before is not known."""
    last = run.last
    if last is None or not run.metric:
        return Check(NAMES[2], None, 'not judged: no validation' + (
            ' yet' if last is None else ' has given a mean AP: nothing was detected, or it measures none'))
    passed = None if kept(run).metrics.get(run.metric, 0.0) > 0 else False
    if run.start:
        nothing = NOTHING_TO_KEEP[run.start]
        return Check(NAMES[2], passed, f'not asked: {nothing}; {_best_line(run, last)}' if passed is None else
                     f'{_best_line(run, last)}; {nothing}, and nothing right is detected yet: train longer, on more '
                     'pictures, or start from weights')
    return Check(NAMES[2], passed, f'{_best_line(run, last)}; not held against pretrained weights: {NO_GUARD}')


def kept(run: Run) -> Validation:
    """The validation of the best checkpoint, which is what a person or the next stage takes; the first on ties.

    It goes by what the run kept its best by, else by the main metric; with ``keep`` among those that keep enough, see
    :func:`merit`. A validation the guard rolled back from left no checkpoint.
    """
    name, rule = run.best if any(run.best[:1] and run.best[0] in each.metrics for each in run.validations) else (
        run.metric, 'greater')

    def rank(validation: Validation) -> tuple[bool, tuple[bool, float, float]]:
        value = validation.metrics.get(name, math.nan)
        share = kept_share(run, validation.metrics) if run.keep else None
        known = not math.isnan(value)
        return known, merit(0.0 if not known else value if rule == 'greater' else -value, share, run.at_least)

    left = [each for each in run.validations if not each.rolled_back] or run.validations
    return max(left, key=rank)


def _nothing(run: Run, metrics: Mapping[str, float]) -> str:
    """Why a figure is 0 or below: CocoMetric gives none where nothing is detected, and -1 without boxes to find."""
    if run.metric in metrics:
        return ' (there are no boxes to find)' if metrics[run.metric] < 0 else ''
    given = [name for name in metrics if kind_of(name) == kind_of(run.metric)]
    return ' (it is not among the figures given, counted as 0)' if given else ' (nothing was detected, counted as 0)'


def _no_nan(run: Run) -> Check:
    spoiled = [f'{name} at epoch {each.epoch}' for each in run.validations
               for name, value in (*each.metrics.items(), *each.weights.items()) if not math.isfinite(value)]
    events = [each for each in run.events if each.kind == 'nan']
    figures = dict(bad_steps=run.bad_steps, spoiled=spoiled, nan_events=len(events))
    faults = []
    if run.bad_steps:
        faults.append(f'{_count(run.bad_steps, "step")} with a loss or gradient that is not finite')
    if spoiled:
        more = f' and {len(spoiled) - 3} more' if len(spoiled) > 3 else ''
        faults.append(f'not finite: {", ".join(spoiled[:3])}{more}')
    if events:
        faults.append(f'{_count(len(events), "NaN event")}, the first at iteration {events[0].iter}')
    broken = 0 if run.recorded else int((~np.isfinite(run.training.get('loss', np.array([])))).sum())
    if broken:
        faults.append(f'{_count(broken, "logged step")} with a loss that is not finite')
    measured = (f'{_count(len(run.validations), "validation")}, all figures finite' if run.validations else
                'no validation yet') + ('; no bad step' if run.recorded else '; all logged losses finite')
    return Check(NAMES[3], not faults, '; '.join(faults) or measured, figures)


def _old_kept(run: Run) -> Check:
    """What is left of the old domain's metric is enough, in the best checkpoint and at the end."""
    if run.start in NOTHING_TO_KEEP:
        return Check(NAMES[4], None, f'not asked: {NOTHING_TO_KEEP[run.start]}')
    name = next(iter(run.mean_aps(OLD)), OLD + run.metric)
    before, last = run.pretrained.get(name, 0.0), run.last
    ends = [kept(run), last] if last else []
    shares = [share for each in ends if (share := kept_share(run, each.metrics)) is not None]
    if last is None or len(shares) < len(ends):
        return Check(NAMES[4], None, _UNKNOWN + _why_unknown(run, name, before), way=HOW)
    best, (share, end), (value, now) = ends[0], shares, (each.metrics.get(name, 0.0) for each in ends)
    by, images = run.keep.get('by') or LABELS, run.keep.get('held_out')
    low = list(dict.fromkeys(each.epoch for each, part in zip(ends, shares) if not keeps(part, run.at_least)))
    line = (f'{name} {before:.3f} -> {value:.3f} at epoch {best.epoch}, the best: {share:.1%} left, at least '
            f'{run.at_least * 100:.4g}% asked; at the end {now:.3f} (epoch {last.epoch}): {end:.1%}; by '
            + ("agreement with the loaded weights' own detections" if by == AGREEMENT else 'labels')
            + (f' on {_count(images, "held-out image")}' if images else '')
            + (f'; too little at epoch {" and ".join(map(str, low))}' if low else ''))
    return Check(NAMES[4], not low, line, dict(
        metric=name, by=by, held_out=images, at_least=run.at_least, pretrained=before, epoch=best.epoch, value=value,
        share=share, last_epoch=last.epoch, last=now, last_share=end))


def _why_unknown(run: Run, name: str, before: float) -> str:
    """Why what is left of the old domain cannot be told."""
    if not run.recorded:
        return NO_GUARD
    if run.last is None:
        return 'the run had no validation' if run.ended == 'plan' else 'no validation yet'
    if not any(each.startswith(OLD) for each in run.last.metrics):
        return 'no images of what the weights knew are followed'
    if not run.pretrained:
        return 'the pretrained baseline was not measured'
    return f'{name} was {before:.3f} before training: the loaded weights find nothing there that could be kept'


def _count(count: int, what: str) -> str:
    return f'{count:,} {what}{"" if count == 1 else "s"}'
