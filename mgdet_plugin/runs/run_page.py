"""A page about a training run that needs nothing but itself: the verdict, stages, events and figures."""
from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from operator import methodcaller
from pathlib import Path

from mgdet_plugin.common.files import make_folder, write_together
from mgdet_plugin.runs.run import LOSS, Run, Validation, read_run
from mgdet_plugin.runs.run_checks import (
    FAIL,
    NOT_MEASURED,
    PASS,
    RESULTS,
    Check,
    check_run,
    verdict,
    verdict_line,
)

PAGE = 'report.html'
CAPTIONS = dict(
    domains='What is learned and what is kept. On the left the mean AP on the new images and on the old domain, dashed '
            'what the loaded weights had; on the right the share of theirs on the old domain that is left: below the '
            'line it is too little, and the model is untrained.',
    losses='Validation losses. Above, every term divided by its value with the loaded weights: a guarded loss over the '
           'limit is being untrained. Below, each term by itself with its pretrained level and, where it fits, that of '
           'a random start; panels whose levels lie far apart have a logarithmic axis.',
    training='Training losses, as logged and smoothed; a step where a stage begins is the new augmentation, a climb '
             'within a stage is not.',
    rates='The learning rate of every group on a logarithmic axis; where a group has no line it is frozen.',
    metrics='What the model finds on the validation images; a curve that stays below the dashed line of its colour '
            'has lost what the pretrained weights could do.',
    weights='How far each part has moved from the weights the run started from; a frozen part must stay on '
            "'unchanged', and a part that makes a jump was trained too hot.")
MISSING = dict(
    domains='Nothing of what the weights knew is followed, so what was learned and what was kept are not drawn side by '
            'side.',
    losses='No validation has measured a loss yet, so there are no validation losses to draw.',
    training='The curves of the training losses are left out: there is no vis_data/scalars.json with training lines in '
             'the work folder.',
    rates='The learning rates are left out: there is no vis_data/scalars.json with training lines in the work folder.',
    metrics='No validation has reported the metric yet: there was none, or nothing was detected.',
    weights='No validation has measured how far the weights moved yet.')
STARTS = {'full': 'full pretrained weights', 'backbone': 'a pretrained backbone', 'nothing': 'nothing',
          '': 'what no guard recorded'}
ENDS = {'plan': 'ended as planned', 'early_stopping': 'ended by early stopping', 'guard': 'stopped by the guard',
        None: 'still running, or interrupted', '': 'no guard recorded how it ended'}
STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #56606e; --paper: #f4f6f9; --card: #ffffff; --line: #d8dee6;
        --good: #00704f; --bad: #b23c00; --open: #7a5200; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #a3adba; --paper: #12161c; --card: #1b2129; --line: #333c48;
          --good: #3ecf9c; --bad: #ff9a5c; --open: #e8c063; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { padding: 8px 12px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.name { white-space: nowrap; } td { overflow-wrap: break-word; } td.text { min-width: 16rem; }
.pass, .fail, .open { font-weight: 700; white-space: nowrap; }
.pass { color: var(--good); } .fail { color: var(--bad); } .open { color: var(--open); }
figure { margin: 0 0 1.2rem; padding: 12px; background: #ffffff; border: 1px solid var(--line); border-radius: 8px; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #3c4653; font-size: .92rem; margin-top: 8px; }
"""


def write_report(work_dir: str | Path, out: Path | None = None) -> list[Path]:
    """Write a run's figures and its page, all or none, to a folder that is made if it is not there.

    By default that is ``work_dir/report``. Returns the paths written, the page last. Figures without data are left out,
    and the page says so.

    Raises:
        UserError: The record cannot be read or the folder cannot be written to.
    """
    run = read_run(work_dir)
    folder = make_folder(out or run.folder / 'report')
    from mgdet_plugin.runs.run_axes import png  # here: no refusal waits for matplotlib
    from mgdet_plugin.runs.run_plots import draw_figures
    images = {name: png(figure) for name, figure in draw_figures(run).items()}
    contents = {folder / f'{name}.png': image for name, image in images.items()}
    contents[folder / PAGE] = run_page(run, check_run(run), images).encode()
    write_together({path: methodcaller('write', content) for path, content in contents.items()})
    for name in CAPTIONS.keys() - images.keys():  # of an earlier report, and no longer true
        (folder / f'{name}.png').unlink(missing_ok=True)
    return list(contents)


def run_page(run: Run, checks: Sequence[Check], images: dict[str, bytes]) -> str:
    """The page as HTML, of what ``check_run`` found and the images (name of a figure -> PNG)."""
    name, result, last = escape(run.folder.resolve().name), verdict(checks), run.last
    done = f'{last.epoch} epochs, {last.iter:,} iterations' if last else 'no validation yet'
    sections = [
        f'<h1>{name}: {_badge(result)}</h1>',
        f'<p class="soft">Started from {STARTS[run.start]}; {done}; {ENDS[run.ended if run.recorded else ""]}.</p>',
        '<h2>Verdict</h2>', _reason(checks), _checks(checks), '<h2>Stages</h2>', _stages(run), '<h2>Events</h2>',
        _events(run), '<h2>Figures</h2>', *_left_out(run), *(_figure(key, images.get(key)) for key in CAPTIONS)]
    return whole_page(f'{name}: {result}', sections)


def whole_page(title: str, sections: Sequence[str], style: str = '') -> str:
    """A page of HTML sections that needs nothing but itself; the title is HTML, ``style`` is added to ours."""
    return ('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{title}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n'
            + '\n'.join(sections) + '\n</main>\n</body>\n</html>\n')


def _badge(result: str) -> str:
    kind, mark = {PASS: ('pass', '✓ '), FAIL: ('fail', '✗ '), NOT_MEASURED: ('open', '? ')}.get(result, ('soft', ''))
    return f'<span class="{kind}">{mark}{result}</span>'


def _reason(checks: Sequence[Check]) -> str:
    """What was not measured, and how to measure it."""
    return f'<p>{escape(verdict_line(checks))}.</p>' if verdict(checks) == NOT_MEASURED else ''


def _checks(checks: Sequence[Check]) -> str:
    rows = [[_badge(RESULTS[each.passed]), escape(each.name), escape(each.line)] for each in checks]
    return html_table(('', 'check', 'figures'), rows, ('', 'name', 'text'))


def _stages(run: Run) -> str:
    if not run.stages:
        return f'<p>{"The run has entered no stage." if run.recorded else "No guard recorded stages."}</p>'
    rows = []
    before = run.pretrained
    for index, stage in enumerate(run.stages):
        end = run.stages[index + 1].first_epoch if index + 1 < len(run.stages) else math.inf
        inside = [each for each in run.validations if stage.first_epoch < each.epoch <= end]
        after = inside[-1].metrics if inside else {}
        rows.append([escape(stage.name), f'{stage.first_epoch} to {min(end, run.epochs):.3g}',
                     f'{stage.first_iter:,}', str(len(inside)),
                     _change(before.get(LOSS), after.get(LOSS), '.4g'), _worst(run, inside),
                     _change(before.get(run.metric, 0.0 if before else None),
                             after.get(run.metric, 0.0) if inside else None, '.3f')])
        before = after or before
    names = ('stage', 'epochs done', 'first iteration', 'validations', LOSS, 'highest guarded ratio', run.metric)
    return html_table(names, rows, ('name', *['number'] * 6))


def _change(before: float | None, after: float | None, form: str) -> str:
    return ' → '.join('-' if each is None else format(each, form) for each in (before, after))


def _worst(run: Run, inside: Sequence[Validation]) -> str:
    found = [(run.ratio(name, each), name) for each in inside for name in run.guarded]
    known = [each for each in found if not math.isnan(each[0])]
    if run.start != 'full' or not known:
        return '-'
    ratio, name = max(known)
    return f'{ratio:.3g} ({escape(name)})'


def _events(run: Run) -> str:
    if not run.events:
        what = 'Nothing happened that the guard had to report.' if run.recorded else 'No guard watched the run.'
        return f'<p>{what}</p>'
    rows = [[str(each.epoch), f'{each.iter:,}', escape(each.stage), escape(each.kind), escape(each.where),
             escape(each.text), escape(', '.join(each.actions).replace('_', ' '))] for each in run.events]
    return html_table(('epoch', 'iteration', 'stage', 'kind', 'seen in', 'what', 'done about it'), rows,
                  ('number', 'number', 'name', 'name', 'name', 'text', ''))


def _left_out(run: Run) -> list[str]:
    names = ', '.join(name.removeprefix('val/') for name in run.silent)
    return [f'<p class="soft">{escape(names)} is 0 throughout, as with a single class: left out.</p>'] if names else []


def _figure(name: str, image: bytes | None) -> str:
    if image is None:
        return f'<p class="soft">{escape(MISSING[name])}</p>'
    return html_figure(image, CAPTIONS[name])


def html_figure(image: bytes, caption: str, kind: str = 'png') -> str:
    """An image (``png`` or ``jpeg``) within the page, and what it shows, a text."""
    caption = escape(caption)
    return (f'<figure><img alt="{caption}" src="data:image/{kind};base64,{base64.b64encode(image).decode()}">'
            f'<figcaption>{caption}</figcaption></figure>')


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str]) -> str:
    """A table; cells are HTML."""
    head = ''.join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(names, classes))
    body = ''.join('<tr>' + ''.join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(row, classes)) + '</tr>\n'
                   for row in rows)
    return (f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>')
