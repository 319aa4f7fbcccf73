"""Whether a run fine-tuned its model or untrained it: four checks on its record."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mgdet_plugin.common.guard_record import Validation
from mgdet_plugin.common.metric_names import kind_of
from mgdet_plugin.common.records import finite
from mgdet_plugin.runs.run import LOSS, OLD, Run, read_run

NAMES = ('loss-below-random', 'losses-within-band', 'performance-kept', 'no-nan')
NO_GUARD = 'no guard (default hook drift_guard) measured what it started from'
ONLY_BACKBONE = 'only the backbone was pretrained'
LABELS = {True: 'PASS', False: 'FAIL', None: 'n/a'}
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: Its name.
        passed: Whether the run passes; None where that is not asked or cannot be judged, which ``line`` says.
        line: One line with the figures it was judged by.
        figures: The same figures, by name.
    """
    name: str
    passed: bool | None
    line: str
    figures: dict[str, Any] = field(default_factory=dict)


def check_run(run: Run | str | Path) -> list[Check]:
    """Judge a run: the loss against a random start, guarded losses and the metric against the pretrained weights, NaN.

    Raises:
        UserError: The work folder holds no record that can be read.
    """
    run = run if isinstance(run, Run) else read_run(run)
    last = run.last
    if not run.recorded:
        return [_training_fell(run), Check(NAMES[1], None, f'not judged: {NO_GUARD}'), _detects(run), _no_nan(run)]
    if last is None:
        without = run.ended == 'plan' and not run.pretrained and not run.random  # which a validation set gives
        passed, line = (None, 'not judged: the run had no validation') if without else (False, 'no validation yet')
        return [*(Check(name, passed, line) for name in NAMES[:3]), _no_nan(run)]
    return [_below_random(run, last), _within_band(run, last), _performance_kept(run, last), _no_nan(run)]


def checks_text(run: Run, checks: list[Check]) -> str:
    """The checks for a person, one a line, and the verdict."""
    lines = [f'{LABELS[each.passed]:<4}  {each.name:<20} {each.line}' for each in checks]
    note = old_domain(run)
    if note:
        lines.append(f'note  {"old-domain":<20} {note[0]}')
    return '\n'.join([*lines, f'verdict: {verdict(checks)}'])


def checks_json(run: Run, checks: list[Check]) -> dict[str, Any]:
    """The checks for machines; null stands for what is not finite."""
    note = old_domain(run)
    return dict(
        work_dir=str(run.folder), verdict=verdict(checks), ended=run.ended,
        checks=[dict(name=each.name, passed=each.passed, line=each.line, figures=finite(each.figures))
                for each in checks],
        old_domain=finite(note[1]) if note else None)


def verdict(checks: Sequence[Check]) -> str:
    """FAIL if a check failed, else PASS."""
    return 'FAIL' if any(each.passed is False for each in checks) else 'PASS'


def old_domain(run: Run) -> tuple[str, dict[str, Any]] | None:
    """Figures of the second validation set before and after, which are not judged; None if none is followed."""
    last = run.last
    if last is None or not any(name.startswith(OLD) for name in (*last.metrics, *run.pretrained)):
        return None
    before, after = ({name: value for name, value in figures.items() if name.startswith(OLD)}
                     for figures in (run.pretrained, last.metrics))
    lines = [f'{name} ' + (f'{before.get(name, 0.0):.3f} -> ' if before else '') + f'{after.get(name, 0.0):.3f}'
             for name in run.mean_aps(OLD) or [OLD + run.metric]]
    lines += [f'{each} ' + (f'{before[each]:.4g} -> ' if each in before else '') + f'{after[each]:.4g}'
              for each in after if 'loss' in each]
    return f'{", ".join(lines)} (at epoch {last.epoch}, not judged)', dict(epoch=last.epoch, before=before, after=after)


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
        return Check(NAMES[0], None, f'not judged: {NO_GUARD}, and no training losses are logged')
    first, end = float(losses[0]), float(np.median(losses[-max(1, len(losses) // 10):]))
    line = f'training loss {end:.4g} at the end, {first:.4g} first logged; {NO_GUARD}'
    return Check(NAMES[0], end < first, line + ('' if end < first else '; it has not fallen'),
                 dict(loss=end, first=first))


def _detects(run: Run) -> Check:
    """Without a guard's record: whether anything is detected; what was before is not known."""
    last = run.last
    if last is None or not run.metric:
        return Check(NAMES[2], None, 'not judged: no validation' + (
            ' yet' if last is None else ' has given a mean AP: nothing was detected, or it measures none'))
    passed = None if kept(run).metrics.get(run.metric, 0.0) > 0 else False
    return Check(NAMES[2], passed, f'{_best_line(run, last)}; not held against pretrained weights: {NO_GUARD}')


def kept(run: Run) -> Validation:
    """The validation of the best checkpoint, which is what a person or the next stage takes; the first on ties.

    It goes by what the run kept its best by, else by the main metric. A validation the guard rolled back from left no
    checkpoint.
    """
    name, rule = run.best if any(run.best[:1] and run.best[0] in each.metrics for each in run.validations) else (
        run.metric, 'greater')

    def figure(validation: Validation) -> float:
        value = validation.metrics.get(name, math.nan)
        return -math.inf if math.isnan(value) else value if rule == 'greater' else -value

    left = [each for each in run.validations if not each.rolled_back] or run.validations
    return max(left, key=figure)


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


def _count(count: int, what: str) -> str:
    return f'{count:,} {what}{"" if count == 1 else "s"}'
