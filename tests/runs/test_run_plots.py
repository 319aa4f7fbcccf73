"""Figures of a run and the page that holds them."""
import base64
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.runs.run import read_run
from mgdet_plugin.runs.run_checks import check_run, kept
from mgdet_plugin.runs.run_page import run_page, write_report
from mgdet_plugin.runs.run_plots import (
    FIGURES,
    draw_domains,
    draw_figures,
    draw_losses,
    draw_metrics,
    draw_training,
    smooth,
)
from tests.support.run_folder import KINDS, write_run
from tests.support.small_run import ROOT, run_tool


class Tags(HTMLParser):
    """The tags of a page and whether all are closed."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(folder, kind='good', old=False):
    record = read_run(write_run(folder / kind, kind, old))
    return run_page(record, check_run(record), {})


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.fixture(scope='module', params=KINDS)
def reported(request, tmp_path_factory):
    """A kind of run, and the files of its report; no warning is given while they are drawn."""
    folder = write_run(tmp_path_factory.mktemp('reported') / 'run', request.param, old=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return request.param, write_report(folder)


def test_every_kind_of_run_is_drawn_without_a_warning(reported):
    kind, (*images, _) = reported
    assert [path.stem for path in images] == (['training', 'rates'] if kind == 'no_validation' else list(FIGURES))
    for path in images:
        pixels = np.asarray(Image.open(path).convert('RGB')).astype(int)
        assert pixels.shape[1] == 1210 and (pixels.min(-1) < 120).mean() > 0.005  # dark or coloured ink
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == 255).all()  # nothing runs out of the picture


def test_the_curves_are_the_figures(tmp_path):
    record = read_run(write_run(tmp_path, 'too_hot'))
    ratios, total, *_ = draw_figures(record)['losses'].axes
    drawn = lines_of(ratios)['loss_obj (guarded)']
    assert drawn.get_ydata()[-1] == pytest.approx(record.ratio('loss_obj', record.last)) and drawn.get_xdata()[-1] == 8
    assert lines_of(ratios)['limit of guarded losses, 1.2'].get_ydata()[0] == pytest.approx(1.2)
    assert lines_of(total)['validation'].get_ydata()[-1] == pytest.approx(record.last.metrics['val/loss'])
    assert lines_of(total)['random start'].get_ydata()[0] == pytest.approx(310.2)
    assert total.get_yscale() == 'log' and ratios.get_yscale() == 'linear'
    assert {text.get_text() for text in total.texts} == {'head', 'neck'}
    assert {'event: drift', 'event: divergence'} <= set(lines_of(total))


def test_a_level_far_away_does_not_flatten_the_curve(tmp_path):
    record = read_run(write_run(tmp_path))
    record.random['val/loss'] = 1e6
    _, total, *_ = draw_figures(record)['losses'].axes
    assert total.get_ylim()[1] < 20 and total.get_yscale() == 'linear' and 'random start' not in lines_of(total)
    assert '(random start 1,000,000, off the axis)' in total.get_xlabel()


def test_both_domains_are_drawn_first(tmp_path):
    record = read_run(write_run(tmp_path, old=True))
    record.keep = dict(at_least=0.9)
    assert next(iter(draw_figures(record))) == 'domains'
    learned, left = draw_domains(record).axes
    for name, label in (('coco/bbox_mAP', 'new images'), ('old/coco/bbox_mAP', 'old domain')):
        line = lines_of(learned)[f'{label}, {name}']
        values = [figures[name] for figures in (record.pretrained, *(each.metrics for each in record.validations))]
        assert list(line.get_ydata()) == values and list(line.get_xdata()) == list(range(31))
        assert lines_of(learned)[f'{label}, loaded weights'].get_ydata()[0] == values[0]
    curve, best, level = left.get_lines()[:3]
    assert list(curve.get_ydata()) == pytest.approx([each / values[0] for each in values])
    assert best.get_label() == f'best.pth, epoch {kept(record).epoch}' and best.get_ydata()[0] > 1
    assert level.get_label() == 'at least 90%' and level.get_ydata()[0] == 0.9
    record.pretrained.clear()  # as of a run from nothing: nothing to hold a share against
    assert len(draw_domains(record).axes) == 1
    assert draw_domains(read_run(write_run(tmp_path / 'alone'))) is None


def test_metrics_of_any_evaluator_are_drawn(tmp_path):
    """VOC's and, beside them, another one's; the AP of one overlap only where it is not the mean."""
    record = read_run(write_run(tmp_path, old=True))
    for index, each in enumerate(record.validations):
        each.metrics.update({'pascal_voc/mAP': 0.01 * index, 'pascal_voc/AP50': 0.01 * index,
                             'old/pascal_voc/mAP': 0.2})
    for metric, first in (('pascal_voc/mAP', []), ('coco/bbox_mAP', ['coco/bbox_mAP_50'])):
        record.metric = metric
        axes, = draw_metrics(record).axes
        drawn = [label for label in lines_of(axes) if '/' in label]
        other = {'pascal_voc/mAP': 'coco/bbox_mAP', 'coco/bbox_mAP': 'pascal_voc/mAP'}[metric]
        assert drawn == [metric, *first, other, f'old/{metric}', f'old/{other}']


def test_a_loss_that_is_always_0_has_no_panel(tmp_path):
    record = read_run(write_run(tmp_path))
    for figures in record.figures:
        figures['val/loss_cls'] = 0.0
    record.training['loss_cls'] *= 0
    figures = draw_losses(record), draw_training(record)
    assert all('loss_cls' not in axes.get_title('left') for figure in figures for axes in figure.axes)
    page = run_page(record, [], {})
    assert 'loss_cls is 0 throughout' in page and 'is 0 throughout' not in page_of(tmp_path)


def test_a_run_without_a_guard_has_a_page(tmp_path):
    folder = write_run(tmp_path / 'run')
    (folder / 'guard.json').unlink()
    record = read_run(folder)
    page = run_page(record, check_run(record), {})
    assert 'what no guard recorded' in page and 'No guard recorded stages' in page and 'n/a' in page
    assert Tags(page).open == []


def test_a_frozen_group_has_a_gap(tmp_path):
    axes, = draw_figures(read_run(write_run(tmp_path)))['rates'].axes
    lines = lines_of(axes)
    epochs, rates = lines['backbone'].get_data()
    assert np.isnan(rates[epochs <= 10]).all() and np.isfinite(rates[epochs > 10]).all()
    assert np.isfinite(lines['bbox_head'].get_ydata()).all()


def test_smoothing_leaves_no_trace_of_spikes():
    values = np.ones(200)
    values[50], values[90] = 1000, np.nan
    assert smooth(values) == pytest.approx(np.ones(200))
    assert np.isnan(smooth(np.full(4, np.nan))).all()


def test_the_page_is_whole_and_needs_nothing_else(reported):
    _, (*images, page) = reported
    page = page.read_text()
    tags = Tags(page)
    assert tags.open == [] and 'http://' not in page and 'https://' not in page and '@import' not in page
    assert not {'script', 'link', 'iframe', 'object'} & {tag for tag, _ in tags.found}
    sources = [attributes['src'] for _, attributes in tags.found if 'src' in attributes]
    assert sources and all(source.startswith('data:image/png;base64,') for source in sources)
    assert all('url(' not in each for each in re.findall(r'<style>.*?</style>', page, re.S))
    for source, path in zip(sources, images, strict=True):
        assert base64.b64decode(source.split(',')[1]) == path.read_bytes()


def test_the_page_tells_verdict_and_figures(tmp_path):
    good, hot = page_of(tmp_path, old=True), page_of(tmp_path, 'too_hot')
    alone = page_of(tmp_path)
    assert 'PASS</span></h1>' in good and 'FAIL' not in good and 'at least 95% asked' in good
    assert '? NOT MEASURED</span></h1>' in alone and 'no images of what the weights knew are followed; train' in alone
    assert 'FAIL</span></h1>' in hot and 'PASS</span></h1>' not in hot
    assert 'random start 310.2' in good and 'at the end 0.057 (epoch 8)' in hot
    assert '14.9 → 19.43' in hot and '1.57 (loss_obj)' in hot  # the stage table
    assert 'lower rate, rollback' in hot and 'stopped by the guard' in hot


def test_text_of_others_is_escaped(tmp_path):
    page = page_of(tmp_path, 'too_hot')
    assert '<script' not in page
    assert '&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; the rate is halved' in page
    folder = write_run(tmp_path / '<b>run')
    assert '&lt;b&gt;run' in run_page(read_run(folder), [], {}) and '<b>' not in run_page(read_run(folder), [], {})


def test_without_a_log_the_page_says_so(tmp_path):
    folder = write_run(tmp_path / 'run')
    write_report(folder)
    for path in folder.glob('*/vis_data/scalars.json'):
        path.unlink()
    paths = write_report(folder)
    assert [path.name for path in paths] == ['losses.png', 'metrics.png', 'weights.png', 'report.html']
    assert sorted(path.name for path in (folder / 'report').iterdir()) == sorted(path.name for path in paths)
    page = paths[-1].read_text()
    assert 'training losses are left out' in page and 'learning rates are left out' in page


def test_all_files_or_none(tmp_path, monkeypatch):
    folder = write_run(tmp_path / 'run')

    def full_disk(stream, content):
        if content.startswith(b'<!DOCTYPE'):
            raise OSError(28, 'No space left on device')
        return stream._stream.write(content)

    monkeypatch.setattr('mgdet_plugin.common.files.CountedStream.write', full_disk)
    with pytest.raises(UserError, match=r'cannot write .*report\.html: No space left'):
        write_report(folder)
    assert list((folder / 'report').iterdir()) == []


def test_the_tool(tmp_path):
    done = run_tool('plot_run', write_run(tmp_path / 'run'), '--out', tmp_path / 'new' / 'out', cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / 'new' / 'out' / name) for name in (
        'losses.png', 'training.png', 'rates.png', 'metrics.png', 'weights.png', 'report.html')]
    (tmp_path / 'file').touch()
    for arguments, message in (([tmp_path], 'drift_guard'), ([tmp_path / 'run', '--out', tmp_path / 'file'],
                                                             'cannot make the folder')):
        done = run_tool('plot_run', *arguments, cwd=ROOT)
        line, = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith('error: ') and message in line
