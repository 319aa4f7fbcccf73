"""What blending found: a table, a plot, JSON, and the picked weights as a checkpoint."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, BinaryIO

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mgdet_plugin.common.checkpoints import to_plain
from mgdet_plugin.common.files import write_together
from mgdet_plugin.common.metric_names import at_half, mean_aps
from mgdet_plugin.plan.progress import RECORD
from mgdet_plugin.runs.blends import Blend, BlendRow
from mgdet_plugin.runs.run_axes import plain_axes, png

_COLORS = dict(new='#f08c1a', old='#1b2a49')
_PICKED = '#c2185b'
_KEPT = ('history', 'entry', 'stage')  # of a run's record: what the weights went through


def blend_table(blend: Blend) -> str:
    """One line an alpha, the picked one marked: main metric, that at IoU 0.5, loss and its terms of each domain."""
    columns = {name: _columns(blend.rows, name, metric) for name, metric in zip(('new', 'old'), blend.metrics)}
    lines = [' ' * 9, '  alpha  ', *(f'{"*" if index == blend.picked else " "} {row.alpha:<7.4g}'
                                     for index, row in enumerate(blend.rows))]
    for name, keys in columns.items():
        cells = [f'{name} domain'.center(9 * len(keys), '-'), ''.join(f'{head:>9}' for head in keys.values())]
        cells += [''.join(f'{found[key]:>9.3f}' if key in found else f'{"-":>9}' for key in keys)
                  for found in (row.domain(name) for row in blend.rows)]
        lines = [f'{line}  {cell}' for line, cell in zip(lines, cells)]
    how = 'the highest on the new domain'
    if any('no blend keeps' in note for note in blend.notes):
        how = 'see the note'
    elif len(columns) == 2:
        how = 'the highest mean of both domains' if blend.by == 'mean' else (
            f'{how} that keeps {blend.keep:g} of the old one')
    return '\n'.join([*(line.rstrip() for line in lines), f'AP is {" and ".join(sorted(set(blend.metrics)))}; '
                      f'* alpha {blend.rows[blend.picked].alpha:g}: {how}'])


def _columns(rows: tuple[BlendRow, ...], domain: str, metric: str) -> dict[str, str]:
    """Key of a measurement -> head of its column, nine characters at most."""
    seen = dict.fromkeys(key for row in rows for key in row.domain(domain))
    further = {key: key[:8] for key in mean_aps(seen) if key != metric}
    heads = {metric: 'AP', at_half(metric, seen) or '': 'AP50', **further}
    losses = {key: key.removeprefix('loss_')[:8] for key in seen if '/' not in key and key.startswith('loss')}
    return {**{key: head for key, head in heads.items() if key in seen}, **losses}


def blend_json(blend: Blend) -> dict[str, Any]:
    """All that was measured, as plain types."""
    pretrained, finetuned = blend.pair.paths
    return dict(pretrained=pretrained, finetuned=finetuned, alpha=blend.rows[blend.picked].alpha, pick=blend.by,
                keep=blend.keep, statistics=blend.statistics, metrics=list(blend.metrics), notes=list(blend.notes),
                table=[dict(alpha=row.alpha, new=dict(row.new), **(dict(old=dict(row.old)) if row.old else {}))
                       for row in blend.rows])


def blend_checkpoint(blend: Blend) -> dict[str, Any]:
    """The picked weights as a checkpoint: what the fine-tuned file says about itself, and a record of the blend."""
    meta, record = (value if isinstance(value, Mapping) else {} for value in map(blend.pair.content.get,
                                                                                 ('meta', RECORD)))
    saved = dict(meta=to_plain({**meta, 'blend': blend_json(blend)}), state_dict=blend.state())
    kept = {key: record[key] for key in _KEPT if key in record}
    return {**saved, **({RECORD: to_plain(kept)} if kept else {})}


def write_outputs(blend: Blend, out: str | None = None, plot: str | None = None, report: str | None = None) -> None:
    """Write what is asked for, each file whole or not at all: picked weights, a picture (PNG) and a report (JSON).

    Raises:
        UserError: A file cannot be written.
    """
    writers: dict[Path, Callable[[BinaryIO], object]] = {}
    if plot:
        writers[Path(plot)] = methodcaller('write', png(blend_figure(blend)))
    if report:
        writers[Path(report)] = methodcaller('write', (json.dumps(blend_json(blend), indent=1) + '\n').encode())
    if out:
        writers[Path(out)] = partial(torch.save, blend_checkpoint(blend))
    write_together(writers)


def blend_figure(blend: Blend) -> Figure:
    """The main metrics against alpha and, with an old domain, against each other; the picked blend is marked."""
    both = len(blend.metrics) == 2
    figure = Figure(figsize=(11 if both else 6, 4.6), dpi=110, layout='constrained')
    panels = figure.subplots(1, 1 + both, squeeze=False)[0]
    scores = [row.scores(blend.metrics) for row in blend.rows]
    alphas = [row.alpha for row in blend.rows]
    axes: Axes = panels[0]
    for name, metric, values in zip(('new', 'old'), blend.metrics, zip(*scores)):
        axes.plot(alphas, values, 'o-', color=_COLORS[name], lw=2, ms=6, label=f'{name} domain, {metric}')
        axes.plot(alphas[blend.picked], values[blend.picked], '*', color=_PICKED, ms=18, zorder=5)
    axes.axvline(alphas[blend.picked], color=_PICKED, lw=1, ls=':', zorder=0, label=f'picked: alpha '
                 f'{alphas[blend.picked]:g}')
    axes.set(xlabel='alpha (0: pretrained, 1: fine-tuned)', ylabel='AP', title='AP along the blend')
    axes.set_xticks(alphas)
    top = max(0.01, *(value for each in scores for value in each))
    axes.set_ylim(-0.05 * top, 1.3 * top)
    axes.legend(loc='upper center', ncols=1, fontsize=9, framealpha=0.9)
    if both:
        _draw_trade(panels[1], [score[1] for score in scores], [score[0] for score in scores], alphas, blend.picked)
    for axes in panels:
        plain_axes(axes)
    return figure


def _draw_trade(axes: Axes, old: list[float], new: list[float], alphas: list[float], picked: int) -> None:
    axes.plot(old, new, '-', color='#9aa5b1', lw=1.5)
    axes.plot(old, new, 'o', color='#4a5568', ms=6)
    axes.plot(old[picked], new[picked], '*', color=_PICKED, ms=18, zorder=5)
    above = False
    for index, (x, y, alpha) in enumerate(zip(old, new, alphas)):
        chosen, before = index == picked, max(0, index - 1)
        near = abs(x - old[before]) < 0.1 * max(map(abs, old)) and abs(y - new[before]) < 0.1 * max(map(abs, new))
        above = not (near and index and above)  # labels of neighbours would cover each other
        axes.annotate(f'{alpha:g}', (x, y), xytext=(8, 8) if above else (-8, -8), textcoords='offset points',
                      ha='left' if above else 'right', va='bottom' if above else 'top', fontsize=10,
                      color=_PICKED if chosen else '#333333', weight='bold' if chosen else 'normal')
    axes.margins(0.12)
    axes.set(xlabel='AP on the old domain', ylabel='AP on the new domain',
             title='Trade between the domains (labels: alpha)')
