"""Examines the pictures and boxes of a data set, and writes what was found."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

from mgdet_plugin.common.errors import UserError, is_number, is_whole, require
from mgdet_plugin.common.files import make_folder, write_together
from mgdet_plugin.common.records import finite
from mgdet_plugin.datasets.formats.dataset_report import number_of
from mgdet_plugin.datasets.sources.annotated import Hints
from mgdet_plugin.prepare.faults.box_faults import box_findings, class_findings, empty_pictures
from mgdet_plugin.prepare.faults.data_source import config_of, data_of, gather, is_data, loader_of, outside_of
from mgdet_plugin.prepare.faults.examination import Examination
from mgdet_plugin.prepare.faults.findings import ERROR, NOTE, WARNING, Example, Finding, found, in_order, some_of
from mgdet_plugin.prepare.faults.input_fit import LEAST_FIT, TINY, NetworkInput, fit, fit_findings, place
from mgdet_plugin.prepare.faults.picture_faults import look_at, picture_findings
from mgdet_plugin.prepare.faults.picture_records import TRAIN, PictureSet
from mgdet_plugin.prepare.faults.weights_classes import weights_findings

LIKE = 'mgdet_model5_stage1'  # whose input size and anchors data without a config are held against
_NAMES = 'NAMES.txt (the classes of the data, one a line)'
PAGE, RECORD = 'doctor.html', 'doctor.json'


def examine(source: str | Path, like: str = LIKE, form: str | None = None, hints: Hints | None = None,
            weights: str | None = None, pictures: int | None = None, tiny: float = TINY,
            least_fit: float = LEAST_FIT, options: Mapping[str, Any] | None = None,
            say: Callable[[str], object] = lambda line: print(line, file=sys.stderr)) -> Examination:
    """Look for what is wrong with a data set.

    Args:
        source: A config; or data, a folder or an annotation file in any format that ``init`` reads.
        like: For data, the config whose input size and anchors they are held against.
        form: For data, their format. Default: the one that is found.
        hints: For data, what cannot be found: class names, the folder of the pictures.
        weights: Checkpoint whose classes the data's are held against. Default: the config's ``load_from``.
        pictures: How many pictures are decoded, evenly spread; 0 for none. Default: all.
        tiny: A box with a shorter side is tiny, in pixels of the input.
        least_fit: A box that the best anchor covers less (IoL) fits none.
        options: Dotted keys of the config to set.
        say: Takes a line on the progress.

    Raises:
        UserError: There are no such data, or their annotations cannot be read at all.
    """
    require(pictures is None or is_whole(pictures, 0), 'the pictures to look at must be a whole number', pictures)
    require(is_number(tiny) and tiny >= 0, 'the side of a tiny box must be a number of pixels', tiny)
    require(is_number(least_fit) and 0 <= least_fit <= 1, 'the least fit of an anchor must be from 0 to 1', least_fit)
    alone = is_data(source)
    cfg = config_of(like if alone else source, options)
    data = data_of(source, cfg, form, hints) if alone else gather(cfg)
    if weights:
        cfg.load_from = weights
    paths = list(dict.fromkeys(each.path for each in data.records))
    chosen = paths if pictures is None else paths[::-(-len(paths) // pictures)] if pictures else []
    looks = look_at(chosen, loader_of(cfg), say)
    findings = [*_refusals(data), *picture_findings(data.records, looks), *box_findings(data), *class_findings(data),
                *empty_pictures(data),
                *weights_findings(cfg, data.classes, _NAMES if alone else None)]
    examined = partial(Examination, str(source), data, looked=len(looks))
    try:
        into = NetworkInput.of_config(cfg)
    except UserError as error:
        findings.append(Finding('no_anchors', NOTE, 1, 'boxes are not held against anchors', str(error)))
        return examined(tuple(in_order(findings)))
    boxes = place(data.of(TRAIN), into)
    fits = fit(boxes, into)
    findings += fit_findings(boxes, into, fits, tiny, least_fit)
    return examined(tuple(in_order(findings)), into, boxes, fits)


def _refusals(data: PictureSet) -> Iterator[Finding]:
    """What training would refuse or say of the annotations as a whole."""
    if data.refused:
        yield Finding('refused', ERROR, len(data.refused), 'would be refused by init' if data.form else some_of(
            len(data.refused), number_of(len(data.splits), 'set'), 'are refused by train and test'),
                      'do what the line says',
                      [Example('', split, line) for split, line in data.refused.items()])
    if data.said:
        yield Finding('said', WARNING, len(data.said), 'training would say of the annotations',
                      'see docs/data.md, What is checked', [Example('', text=line) for line in data.said])
    yield from found('missing', ERROR, [Example(name) for name in data.missing],
                     number_of(len(data.missing) + len(data.records), 'picture'), 'are annotated and not there',
                     'fetch them, take their records out, or give the folder of the pictures by --images')
    if data.notes:
        yield Finding('read', NOTE, len(data.notes), 'how the annotations were read', 'see that it is meant so',
                      [Example('', text=line) for line in data.notes])


def write_examination(seen: Examination, out: str | Path) -> list[Path]:
    """Write the page and the record to a folder, which is made; both or none. Returns their paths, the page last.

    Raises:
        UserError: It is a folder of the data, or cannot be written to.
    """
    folder = Path(out)
    make_folder(outside_of(seen.data, folder))
    sizes = None
    if seen.into and seen.boxes and len(seen.boxes.owners):
        from mgdet_plugin.prepare.anchor_plot import sizes_figure
        sizes = sizes_figure(seen.boxes.sizes, dict(anchors=seen.into))
    from mgdet_plugin.prepare.faults.doctor_page import doctor_page
    contents = {RECORD: json.dumps(finite(seen.as_json()), indent=1), PAGE: doctor_page(seen, sizes)}
    write_together({folder / name: methodcaller('write', text.encode()) for name, text in contents.items()})
    return [folder / name for name in contents]
