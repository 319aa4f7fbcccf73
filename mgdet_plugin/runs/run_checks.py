"""Whether a run fine-tuned its model or untrained it: four checks on its record."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mgdet_plugin.common.records import finite
from mgdet_plugin.runs.run import LOSS, OLD, Run, Validation

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: Its name.
        passed: Whether the run passes.
        line: One line with the figures it was judged by.
        figures: The same figures, by name.
    """
    name: str
    passed: bool
    line: str
    figures: dict[str, Any] = field(default_factory=dict)


def check_run(record: Run) -> list[Check]:
    """Judge a run: the loss against a random start, guarded losses and the metric against the pretrained weights, NaN.

    Args:
        record: What :func:`mgdet_plugin.runs.run.read_run` read.
    """
    last = record.last
    if last is None:
        return [*(Check(name, False, 'no validation yet') for name in NAMES[:3]), _no_nan(record)]
    return [_below_random(record, last), _within_band(record, last), _performance_kept(record, last), _no_nan(record)]


NAMES = ('loss-below-random', 'losses-within-band', 'performance-kept', 'no-nan')


def checks_text(record: Run, checks: list[Check]) -> str:
    """The checks for a person, one a line, and the verdict."""
    lines = [f'{"PASS" if each.passed else "FAIL"}  {each.name:<20} {each.line}' for each in checks]
    note = old_domain(record)
    if note:
        lines.append(f'note  {"old-domain":<20} {note[0]}')
    return '\n'.join([*lines, f'verdict: {verdict(checks)}'])


def checks_json(record: Run, checks: list[Check]) -> dict[str, Any]:
    """The checks for machines; null stands for what is not finite."""
    note = old_domain(record)
    return dict(
        work_dir=str(record.folder), verdict=verdict(checks), ended=record.ended,
        checks=[dict(name=each.name, passed=each.passed, line=each.line, figures=finite(each.figures))
                for each in checks],
        old_domain=finite(note[1]) if note else None)


def verdict(checks: list[Check]) -> str:
    """PASS if every check passed, else FAIL."""
    return 'PASS' if all(each.passed for each in checks) else 'FAIL'


def old_domain(record: Run) -> tuple[str, dict[str, Any]] | None:
    """Figures of the second validation set before and after, which are not judged; None if none is followed."""
    last = record.last
    if last is None or not any(name.startswith(OLD) for name in (*last.metrics, *record.pretrained)):
        return None
    before, after = ({name: value for name, value in figures.items() if name.startswith(OLD)}
                     for figures in (record.pretrained, last.metrics))
    name = OLD + record.metric
    lines = [f'{name} {before.get(name, 0.0):.3f} -> {after.get(name, 0.0):.3f}'] if before else [
        f'{name} {after.get(name, 0.0):.3f}']
    lines += [f'{each} ' + (f'{before[each]:.4g} -> ' if each in before else '') + f'{after[each]:.4g}'
              for each in after if 'loss' in each]
    return f'{", ".join(lines)} (at epoch {last.epoch}, not judged)', dict(epoch=last.epoch, before=before, after=after)


def _below_random(record: Run, last: Validation) -> Check:
    """The loss is below a random start's; that of the loaded weights need not be, on images of another domain."""
    now, random, before = (figures.get(LOSS, math.nan)
                           for figures in (last.metrics, record.random, record.pretrained))
    figures = dict(epoch=last.epoch, loss=now, random=random, pretrained=before)
    line = f'{LOSS} {now:.4g} at epoch {last.epoch}' + ''.join(
        f', {what} {value:.4g}' for what, value in (('random start', random), ('pretrained', before))
        if not math.isnan(value))
    faults = []
    if math.isnan(random):
        faults.append('the loss of a random start was not measured')
    elif not now < random:
        faults.append('the run ends no better than a random start')
    return Check(NAMES[0], not faults, '; '.join([line, *faults]), figures)


def _within_band(record: Run, last: Validation) -> Check:
    """Every guarded loss is within the limit of its pretrained value, and the guard did not stop the run."""
    top = 1 + record.limit
    passed, line, figures = _band_figures(record, last, top)
    if record.ended == 'guard':
        stop = next((each for each in reversed(record.events) if 'stop' in each.actions), None)
        at = stop.iter if stop else last.iter
        passed, line = False, f'{line}; the guard stopped the run at iteration {at}'
        figures = dict(figures, stopped_at=at)
    return Check(NAMES[1], passed, line, figures)


def _band_figures(record: Run, last: Validation, top: float) -> tuple[bool, str, dict[str, Any]]:
    """Whether the last ratios are in the band, a line about them, and figures."""
    if record.start == 'nothing':
        return False, 'started from nothing: there are no pretrained losses to keep', {}
    if record.start == 'backbone':
        return True, 'not asked: only the backbone was pretrained', {}
    if not record.guarded:
        return False, 'no loss is guarded; name them in the hook drift_guard', {}
    ratios = {name: record.ratio(name, last) for name in record.guarded}
    best = kept(record)
    figures: dict[str, Any] = dict(epoch=last.epoch, limit=top, ratios=ratios, best_epoch=best.epoch,
                                   best_ratios={name: record.ratio(name, best) for name in record.guarded})
    unknown = [name for name in record.guarded if f'val/{name}' not in record.pretrained]
    if unknown:
        return False, f'no pretrained value of {", ".join(unknown)} was measured', figures
    over = _over(record, (last, best), top)
    worst, name, epoch = max(((record.ratio(each, validation), each, validation.epoch) for each in record.guarded
                              for validation in record.validations), key=lambda found: _nan_last(found[0]))
    figures.update(worst=worst, worst_loss=name, worst_epoch=epoch)
    listed = ', '.join(f'{each} {ratio:.3g}' for each, ratio in ratios.items())
    line = (f'{listed} times pretrained at epoch {last.epoch}, at most {top:.3g} allowed; worst of the run '
            f'{worst:.3g} ({name}, epoch {epoch})')
    return not over, line + (f'; too high: {", ".join(over)}' if over else ''), figures


def _over(record: Run, validations: tuple[Validation, ...], top: float) -> list[str]:
    """The guarded losses above the limit at the end and in the best checkpoint."""
    found = {f'{name} at epoch {each.epoch}': record.ratio(name, each) for each in validations
             for name in record.guarded}
    return [name for name, ratio in found.items() if not ratio <= top * (1 + _ROUNDING)]


def _nan_last(ratio: float) -> float:
    """A key that puts NaN above every number."""
    return math.inf if math.isnan(ratio) else ratio


def _performance_kept(record: Run, last: Validation) -> Check:
    """The best checkpoint's metric is at least what the pretrained weights had on the same images, and not 0."""
    if record.start == 'nothing':
        return Check(NAMES[2], False, 'started from nothing: there is no pretrained baseline')
    if not record.pretrained:
        passed = record.start == 'backbone'
        return Check(NAMES[2], passed, 'not asked: only the backbone was pretrained' if passed else
                     'the pretrained baseline was not measured')
    if not record.metric:
        return Check(NAMES[2], True, 'not asked: the validation gives no metric')
    best = kept(record)
    value, end = (each.metrics.get(record.metric, 0.0) for each in (best, last))
    before = record.pretrained.get(record.metric, 0.0)
    figures = dict(metric=record.metric, epoch=best.epoch, value=value, pretrained=before, last=end,
                   last_epoch=last.epoch)
    line = (f'{record.metric} {value:.3f} at epoch {best.epoch}, the best{_nothing(record, best.metrics)}, pretrained '
            f'{before:.3f}{_nothing(record, record.pretrained)}; at the end {end:.3f} (epoch {last.epoch})')
    if not value > 0:
        line += '; a model that detects nothing right has kept nothing'
    return Check(NAMES[2], value >= before and value > 0, line, figures)


def kept(record: Run) -> Validation:
    """The validation of the best checkpoint, which is what a person or the next stage takes; the first on ties.

    It goes by what the run kept its best by, else by the main metric. A validation the guard rolled back from left no
    checkpoint.
    """
    name, rule = record.best or (record.metric, 'greater')

    def figure(validation: Validation) -> float:
        value = validation.metrics.get(name, math.nan)
        return -math.inf if math.isnan(value) else value if rule == 'greater' else -value

    left = [each for each in record.validations if not each.rolled_back] or record.validations
    return max(left, key=figure)


def _nothing(record: Run, metrics: Mapping[str, float]) -> str:
    return '' if record.metric in metrics else ' (nothing was detected, counted as 0)'


def _no_nan(record: Run) -> Check:
    """No step, validation figure or event was NaN or infinite."""
    spoiled = [f'{name} at epoch {each.epoch}' for each in record.validations
               for name, value in (*each.metrics.items(), *each.weights.items()) if not math.isfinite(value)]
    events = [each for each in record.events if each.kind == 'nan']
    figures = dict(bad_steps=record.bad_steps, spoiled=spoiled, nan_events=len(events))
    faults = []
    if record.bad_steps:
        faults.append(f'{_count(record.bad_steps, "step")} with a loss or gradient that is not finite')
    if spoiled:
        more = f' and {len(spoiled) - 3} more' if len(spoiled) > 3 else ''
        faults.append(f'not finite: {", ".join(spoiled[:3])}{more}')
    if events:
        faults.append(f'{_count(len(events), "NaN event")}, the first at iteration {events[0].iter}')
    measured = (f'{_count(len(record.validations), "validation")}, all figures finite' if record.validations else
                'no validation yet') + '; no bad step'
    return Check(NAMES[3], not faults, '; '.join(faults) or measured, figures)


def _count(count: int, what: str) -> str:
    return f'{count:,} {what}{"" if count == 1 else "s"}'
