"""Names of a validation's figures: which is the metric that counts, whatever evaluator of mmdet gave it."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

AUTO = 'auto'
_MAP = re.compile(r'(?:(?<=[/_])|^)m?AP$')
_FORMS = dict(CocoMetric='{}_mAP', LVISMetric='{}_AP', VOCMetric='mAP', OpenImagesMetric='mAP')
"""Class of mmdet's -> what it calls its mean AP; its subclasses do, too."""


def is_mean_ap(name: str) -> bool:
    """Whether a figure is a mean AP: 'coco/bbox_mAP', 'pascal_voc/mAP', 'lvis/bbox_AP'; that of one overlap is not."""
    return _MAP.search(name) is not None


def mean_aps(names: Iterable[str]) -> list[str]:
    """The mean APs among figures, in their order, each once."""
    return list(dict.fromkeys(filter(is_mean_ap, names)))


def at_half(metric: str, names: Iterable[str]) -> str | None:
    """The AP at an overlap of 0.5 that is given beside a mean AP, or None."""
    known = (f'{metric}_50', f'{metric}50', _MAP.sub('AP50', metric))  # of COCO, LVIS and VOC
    return next((name for name in known if name != metric and name in names), None)


def kind_of(name: str) -> str:
    """What a figure's name begins with: its evaluator's prefix; 'val' of a loss; the name of a further set."""
    return name.rpartition('/')[0]


def prefix_of(metric: type, options: Mapping[str, Any]) -> str:
    """What the names of a metric's figures begin with; see :func:`expected`."""
    return options.get('prefix') or getattr(metric, 'default_prefix', None) or ''


def expected(metric: type, options: Mapping[str, Any]) -> list[str]:
    """The mean APs a metric gives, as far as its class is known.

    A validation does not tell: CocoMetric gives none where nothing was detected.

    Args:
        metric: Its class.
        options: Its arguments, or the attributes of a built one.
    """
    form = next((_FORMS[each.__name__] for each in metric.__mro__ if each.__name__ in _FORMS), None)
    if form is None or 'mAP' not in (options.get('metric_items') or ['mAP']):
        return []
    asked = options.get('metrics') or options.get('metric') or 'bbox'
    names = [form.format(each) for each in ([asked] if isinstance(asked, str) else asked)
             if not each.startswith(('proposal', 'recall'))]
    return list(dict.fromkeys('/'.join(filter(None, (prefix_of(metric, options), name))) for name in names))


def expected_of(metrics: Iterable[Any]) -> list[str]:
    """The same of an evaluator's built metrics, in their order."""
    return [name for each in metrics for name in expected(type(each), vars(each))]


def figures_in_words(metrics: Mapping[str, Any]) -> str:
    """A validation's figures for a person: mean AP, that at an overlap of 0.5 and loss, those of further sets behind.

    Where there is none of them it is the other figures, by their names.
    """
    others = [name.removesuffix('/loss') for name in metrics if name.endswith('/loss') and name != 'val/loss']
    domains: dict[str, dict[str, Any]] = {domain: {} for domain in ('', *others)}
    for name, value in metrics.items():
        domain = next((each for each in others if name.startswith(f'{each}/')), '')
        domains[domain][name.removeprefix(f'{domain}/' if domain else 'val/')] = value
    return '; '.join(filter(None, (_domain_in_words(*each) for each in domains.items())))


def _domain_in_words(domain: str, figures: Mapping[str, Any]) -> str:
    """The figures of one validation set, without the prefix of its name."""
    names = mean_aps(figures)
    words = []
    for name in names:
        kind = f'{kind_of(name)} ' if len(names) > 1 else ''
        half = at_half(name, figures)
        words.append(f'{kind}AP {figures[name]:.3f}' + (f' (AP50 {figures[half]:.3f})' if half else ''))
    if 'loss' in figures:
        words.append(f'loss {figures["loss"]:.4g}')
    words = words or [f'{name} {value:.4g}' for name, value in figures.items() if isinstance(value, (int, float))]
    return ' '.join(filter(None, (domain, ', '.join(words)))) if words else ''
