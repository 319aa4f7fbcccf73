"""A page about what weights detect that needs nothing but itself: figures, tables and the worst pictures."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mgdet_plugin.datasets.formats.dataset_report import some
from mgdet_plugin.datasets.formats.picture_files import DECODER_ERRORS
from mgdet_plugin.runs.analysis.analysis import Analysis, mean
from mgdet_plugin.runs.analysis.error_kinds import KINDS, MEANING, MISSED
from mgdet_plugin.runs.analysis.evaluation_record import AFTER, BEFORE, Evaluation, Row
from mgdet_plugin.runs.analysis.picture_errors import (
    MOST_WRONG,
    PictureErrors,
    drawn_picture,
    picture_errors,
    worst_pictures,
)
from mgdet_plugin.runs.run_page import html_figure, html_table, whole_page

TITLES = dict(
    errors='What costs AP', class_ap='Each class', confusion='What is taken for what',
    confidence='Which score to ask for', precision_recall='Precision and recall', size_ap='Sizes',
    overlaps='How well boxes fit', calibration='Whether scores mean what they say')
CAPTIONS = dict(
    errors='Each bar is the AP at IoU 0.5 that would be gained if errors of that kind alone were mended. The bars do '
           'not sum to what is missing: some objects are lost to two kinds at once.',
    class_ap='Mean AP of each class, with the number of its objects.',
    confusion='Objects (rows) by the class of what is found on them at IoU 0.5, coloured by their share of the row. '
              'The last column is what is missed, the last row what is found where nothing is.',
    confidence='What is left when detections below a score are dropped. The star is the score of the best F1: the one '
               'to use where misses and mistakes weigh the same.',
    precision_recall='How much of what is found is right, against how much of what is there is found, as the least '
                     'score falls; a curve drops to 0 where no lower score finds more.',
    size_ap='AP of objects by their area in the original picture, in the three ranges of COCO.',
    overlaps='IoU of each detection with the object of its class it lies on, at the score of the best F1.',
    calibration='The share of detections that is right (IoU 0.5), by their score: below the diagonal scores promise '
                'too much. The error is the mean distance, weighted by how many detections there are (below).')
STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 12px; }
.three { grid-template-columns: 1fr; }
.scroll table { font-size: .86rem; } .scroll th, .scroll td { padding: 7px 8px; }
.pictures figure { margin: 0; padding: 8px; } .pictures figcaption { overflow-wrap: anywhere; font-size: .85rem; }
li { margin: .25rem 0; } .good { color: #00704f; } .wrong { color: #b23c00; }
"""
_OFTEN = 0.02  # share of a class's objects from which a confusion is worth a line
_FEW = 3  # classes of a line
_USELESS = 0.01  # the best F1, below which no score is worth asking for
_LOST, _GAINED, _OFF = 0.02, 0.0005, 0.05  # AP of a class, AP50 of a kind of error, calibration error: the same
FIGURES_OF_SUMMARY = dict(
    images='images', objects='objects', AP='AP', AP50='AP50', AP75='AP75', best_f1='best F1', threshold='at score',
    precision='precision', recall='recall', mean_overlap='mean IoU', calibration_error='ECE')
OF_CLASSES = dict(AP='AP', AP50='AP50', AP75='AP75', AP_small='small', AP_medium='medium', AP_large='large',
                  best_f1='best F1', threshold='at score', precision='precision', recall='recall')


def evaluation_page(evaluation: Evaluation, tables: Mapping[str, Sequence[Row]], images: Mapping[str, bytes]) -> str:
    """The page as HTML, of all tables and the figures (name -> PNG)."""
    sections = [f'<h1>{escape(evaluation.title)}: {headline(evaluation)}</h1>',
                *(f'<p class="soft">{escape(name)}: {escape(each)}</p>' for name, each in evaluation.sources.items()),
                '<h2>In short</h2>', _summary(evaluation, tables['summary']),
                '<ul>', *(f'<li>{escape(line)}</li>' for line in remarks(evaluation)), '</ul>']
    for name, image in images.items():
        sections += [f'<h2 id="{name}">{TITLES[name]}</h2>', html_figure(image, CAPTIONS[name])]
        if name == 'errors':
            sections += [*(_errors(domain, tables['errors']) for domain in evaluation.domains), *_worst(evaluation)]
        elif name == 'class_ap':
            sections += [_classes(evaluation, domain, tables['classes']) for domain in evaluation.domains]
        elif name == 'confusion':
            sections += _confusions(evaluation)
    sections.append('<p class="soft">AP is that of COCO: the mean over IoU 0.5 to 0.95 and the classes that have '
                    'objects; precision, recall and F1 are at IoU 0.5; ECE is the expected calibration error. All '
                    'numbers are in evaluation.json and the CSV files beside this page.</p>')
    return whole_page(f'{escape(evaluation.title)}: {headline(evaluation)}', sections, STYLE)


def headline(evaluation: Evaluation) -> str:
    """AP of each set, before and after."""
    return ', '.join(f'AP {" → ".join(number(one.mean_ap) for one in measured.values())} on the {escape(domain)}'
                     for domain, measured in evaluation.domains.items())


def number(value: Any) -> str:
    """A figure as a person reads it; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '-'
    return f'{value:.3f}' if isinstance(value, float) else f'{value:,}' if isinstance(value, int) else str(value)


def remarks(evaluation: Evaluation) -> list[str]:
    """What a person should look at first, a line each."""
    lines = []
    for domain, measured in evaluation.domains.items():
        one = measured[AFTER]
        of_set = f'{domain}: ' if len(evaluation.domains) > 1 else ''
        lines += [of_set + line for line in (*_cost(one), *_weakest(measured), *_confused(one), *_scores(one))]
    return lines


def _cost(one: Analysis) -> Iterable[str]:
    kind = max(KINDS, key=lambda name: one.errors.gained[name])
    if one.errors.gained[kind] >= _GAINED:
        what = 'objects that are missed' if kind == MISSED else f'{kind} errors ({MEANING[kind]})'
        yield (f'most is lost to {what}: mending them alone would raise AP50 from {one.errors.average:.3f} to '
               f'{one.errors.average + one.errors.gained[kind]:.3f}')


def _weakest(measured: Mapping[str, Analysis]) -> Iterable[str]:
    one = measured[AFTER]
    values = [mean(column) for column in one.curves.average.T]
    known = sorted((value, name) for value, name in zip(values, one.classes) if not math.isnan(value))
    at_zero = [name for name in one.classes if (0.0, name) in known]
    if len(at_zero) > _FEW:  # none of them is weaker than another
        yield f'{len(at_zero):,} of {len(known):,} classes have an AP of 0: {some(at_zero, _FEW)}'
    elif len(known) > 1 and known[-1][0] > 0:
        yield 'the weakest classes are ' + ', '.join(f'{name} (AP {value:.3f})' for value, name in known[:_FEW])
    if BEFORE in measured:
        before = [mean(column) for column in measured[BEFORE].curves.average.T]
        lost = sorted((value - was, name) for value, was, name in zip(values, before, one.classes)
                      if value < was - _LOST)
        if lost:
            yield 'worse than before are ' + ', '.join(f'{name} (AP {change:+.3f})' for change, name in lost[:3])


def _confused(one: Analysis) -> Iterable[str]:
    inner = one.confusion[:-1, :-1] - np.diag(np.diag(one.confusion[:-1, :-1]))
    truth, found = np.unravel_index(inner.argmax(), inner.shape)
    if inner[truth, found] > _OFTEN * one.matched.positives[truth]:
        yield (f'{one.classes[truth]} is taken for {one.classes[found]} most often, {inner[truth, found]} of '
               f'{one.matched.positives[truth]:,} times')


def _scores(one: Analysis) -> Iterable[str]:
    if math.isnan(one.overall.threshold):
        yield 'nothing that is found is right'
        return
    precision, recall, f1 = one.overall.best
    if f1 < _USELESS:
        yield f'hardly anything that is found is right: F1 is {f1:.4f} at best, whatever score is asked for'
        return
    yield (f'F1 is best, {f1:.3f}, for detections with a score of at least {one.threshold:.2f}: {precision:.0%} of '
           f'them are right, and {recall:.0%} of the objects are found')
    kept = one.calibration.counts > 0
    over = np.average((one.calibration.score - one.calibration.precision)[kept], weights=one.calibration.counts[kept])
    if one.calibration.error > _OFF:
        yield (f'scores promise too {"much" if over > 0 else "little"}: they are off by {one.calibration.error:.3f} on '
               'average')


def _summary(evaluation: Evaluation, rows: Sequence[Row]) -> str:
    weights = ('weights', ) if evaluation.is_compared else ()
    body = [[escape(row['domain']), *([row['weights']] if weights else []),
             *(number(row[key]) for key in FIGURES_OF_SUMMARY)] for row in rows]
    return html_table(('set', *weights, *FIGURES_OF_SUMMARY.values()), body,
                      ('name', *['name'] * len(weights), *['number'] * len(FIGURES_OF_SUMMARY)))


def _pairs(rows: Iterable[Row], key: str) -> str:
    """A figure of one or two rows, before and after."""
    return ' → '.join(number(row[key]) for row in rows if row[key] is not None) or number(None)


def _errors(domain: str, rows: Sequence[Row]) -> str:
    body = []
    for kind in KINDS:
        of_kind = [row for row in rows if (row['domain'], row['kind']) == (domain, kind)]
        body.append([kind, escape(MEANING[kind]),
                     *(_pairs(of_kind, key) for key in ('AP50_gained', 'at_threshold', 'count'))])
    names = (escape(domain), 'what it is', 'AP50 gained', 'how many at the score of the best F1', 'in all')
    return '<p></p>' + html_table(names, body, ('name', 'text', 'number', 'number', 'number'))


def _classes(evaluation: Evaluation, domain: str, rows: Sequence[Row]) -> str:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row['domain'] == domain:
            found.setdefault(row['class'], []).append(row)
    body = [[escape(name), number(each[-1]['objects']), *(
        _pairs(each if key in ('AP', 'AP50') else each[-1:], key) for key in OF_CLASSES)]
        for name, each in found.items() if each[-1]['objects']]
    absent = ', '.join(escape(name) for name, each in found.items() if not each[-1]['objects'])
    said = f'{escape(domain)}{_last(evaluation)}{f". No object of {absent}" if absent else ""}'
    return f'<p>{said}</p>' + html_table(
        ('class', 'objects', *OF_CLASSES.values()), body, ('name', *['number'] * (len(OF_CLASSES) + 1)))


def _last(evaluation: Evaluation) -> str:
    return '; where there is one figure, it is of the weights after' if evaluation.is_compared else ''


def _confusions(evaluation: Evaluation) -> list[str]:
    """The pairs of classes that are taken for one another most often."""
    parts = []
    for domain, measured in evaluation.domains.items():
        one = measured[AFTER]
        inner = one.confusion[:-1, :-1] - np.diag(np.diag(one.confusion[:-1, :-1]))
        order = [place for place in np.argsort(-inner, axis=None, kind='stable')[:5] if inner.flat[place]]
        pairs = [np.unravel_index(place, inner.shape) for place in order]
        said = ', '.join(f'{one.classes[truth]} for {one.classes[found]} ({inner[truth, found]})'
                         for truth, found in pairs)
        parts.append(f'<p>{escape(domain)}: {escape(said) or "no class is taken for another"}.</p>')
    return parts


def _worst(evaluation: Evaluation) -> list[str]:
    parts = []
    for domain, measured in evaluation.domains.items():
        analyses = list(measured.values())
        found = [picture_errors(each, analyses[-1].threshold) for each in analyses]
        grown = len(found) > 1 and domain != next(iter(evaluation.domains))
        places = worst_pictures(found[-1], found[0] if grown else None)
        what = 'on which most has become wrong' if grown else 'on which most is wrong'
        columns = 'truth, before, after' if len(found) > 1 else 'truth, found'
        figures = [_picture(analyses, found, place) for place in places]
        parts += [f'<h2>Pictures of the {escape(domain)} {what}</h2>',
                  f'<p>Left to right: {columns}, from a score of {analyses[-1].threshold:.2f} on. '
                  '<span class="good">Green</span> is found and right, <span class="wrong">red</span> is wrong; '
                  'objects that are missed are dashed.</p>'
                  if figures else f'<p>There is none: nothing {"became" if grown else "is"} wrong.</p>',
                  f'<div class="pictures{" three" if len(found) > 1 else ""}">{"".join(figures)}</div>']
    return parts


def _picture(analyses: Sequence[Analysis], found: Sequence[Sequence[PictureErrors]], place: int) -> str:
    """A picture, or what there is to say of it where it cannot be read by its path."""
    caption = _caption(analyses[-1], found, place)
    try:
        drawn = drawn_picture(analyses, [each[place] for each in found], place)
    except DECODER_ERRORS:
        return f'<figure><figcaption>{escape(caption)}</figcaption></figure>'
    return html_figure(drawn, caption, 'jpeg')


def _caption(one: Analysis, found: Sequence[Sequence[PictureErrors]], place: int) -> str:
    result, last = one.results[place], found[-1][place]
    kinds = ', '.join(f'{last.kinds.count(kind)} {kind}' for kind in KINDS if kind in last.kinds)
    said = [f'{len(last.right)} of {int((~result.crowd).sum())} found', *([f'wrong: {kinds}'] if kinds else [])]
    if len(last.wrong) > MOST_WRONG:
        said.append(f'drawn are the {MOST_WRONG} wrong ones with the highest scores, '
                    f'{len(last.wrong) - MOST_WRONG:,} more are not')
    if len(found) > 1:
        said.append(f'errors {found[0][place].total} → {last.total}')
    return f'{Path(result.path).name}: {"; ".join(said)}'
