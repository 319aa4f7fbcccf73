"""Work folders as a training run leaves them, without training.

``python tests/support/run_folder.py KIND DIR`` writes one.

Kinds are the names in :data:`KINDS`. Numbers are made up, but of the size and shape real runs have.
"""
from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

ITERS = 40  # an epoch
STAGES = (('head', 5), ('neck', 5), ('full', 20))
PRETRAINED = {'loss_coord': 4.1, 'loss_obj': 6.3, 'loss_anchor': 1.2, 'loss_cls': 3.3}
RANDOM = {'loss_coord': 11.0, 'loss_obj': 286.0, 'loss_anchor': 3.4, 'loss_cls': 9.8}
MAP, MAP50 = 'coco/bbox_mAP', 'coco/bbox_mAP_50'


def guard(kind: str = 'good', old: bool = False) -> dict[str, Any]:
    """The content of ``guard.json`` for a kind of run."""
    rng = np.random.default_rng(7)
    content: dict[str, Any] = dict(
        version=1, start='full', limit=0.2, guarded=['loss_obj', 'loss_cls'], metric=MAP,
        stages=[dict(name='head', first_epoch=0, first_iter=0), dict(name='neck', first_epoch=5, first_iter=5 * ITERS),
                dict(name='full', first_epoch=10, first_iter=10 * ITERS)],
        baseline=dict(pretrained=figures(PRETRAINED, 0.212, old), random=figures(RANDOM, 0.0, old)),
        validations=[validation(epoch, rng, old) for epoch in range(1, 31)],
        events=[event(11, 11 * ITERS - 15, 'spike', 'training', {'loss': 31.2}, ['warn'],
                      'loss 31.2 is 3.1 times its median of the last 50 iterations')],
        bad_steps=0, ended='plan')
    CHANGES.get(kind, lambda content: None)(content)
    return content


def figures(losses: dict[str, float], score: float, old: bool = False) -> dict[str, float]:
    """Figures of one validation."""
    found = {f'val/{name}': value for name, value in losses.items()}
    found = {'val/loss': sum(losses.values()), **found}
    if score:
        found.update({MAP: score, MAP50: min(1.0, score * 1.9)})
    if old:
        kept = score * 0.4 + 0.2 if score else 0.0
        found.update({'old/loss': sum(losses.values()) * 0.9, 'old/coco/bbox_mAP': kept})
    return found


def validation(epoch: int, rng: np.random.Generator, old: bool = False) -> dict[str, Any]:
    """A validation of a run that goes well."""
    share = 1 - 0.35 * (1 - math.exp(-epoch / 9)) + 0.02 * rng.standard_normal(4)
    losses = {name: value * float(part) for (name, value), part in zip(PRETRAINED.items(), share)}
    stage = 'head' if epoch <= 5 else 'neck' if epoch <= 10 else 'full'
    score = 0.212 + 0.17 * (1 - math.exp(-epoch / 8)) + 0.006 * float(rng.standard_normal())
    weights = dict(backbone=0.0 if epoch <= 10 else 0.0016 * math.sqrt(epoch - 10),
                   neck=0.0 if epoch <= 5 else 0.004 * math.sqrt(epoch - 5), bbox_head=0.009 * math.sqrt(epoch))
    return dict(epoch=epoch, iter=epoch * ITERS, stage=stage, metrics=figures(losses, score, old),
                ratios={name: losses[name] / PRETRAINED[name] for name in ('loss_obj', 'loss_cls')}, weights=weights)


def event(epoch: int, iteration: int, kind: str, where: str, values: dict[str, float | None], actions: list[str],
          text: str) -> dict[str, Any]:
    """An event."""
    stage = 'head' if epoch <= 5 else 'neck' if epoch <= 10 else 'full'
    return dict(epoch=epoch, iter=iteration, stage=stage, kind=kind, where=where, values=values, actions=actions,
                text=text)


def too_hot(content: dict[str, Any]) -> None:
    """A rate far too high: guarded losses climb out of the band and the guard stops the run at epoch 8."""
    content.update(validations=content['validations'][:8], stages=content['stages'][:2], ended='guard')
    for each in content['validations'][2:]:
        rise = 1.12 ** (each['epoch'] - 1)
        metrics = each['metrics']
        for name in ('loss_obj', 'loss_cls'):
            metrics[f'val/{name}'] = PRETRAINED[name] * rise
            each['ratios'][name] = rise
        metrics['val/loss'] = sum(metrics[f'val/{name}'] for name in PRETRAINED)
        for name in (MAP, MAP50):
            metrics[name] *= 0.75 ** (each['epoch'] - 2)
    content['events'] = [
        event(3, 3 * ITERS, 'drift', 'validation', {'loss_obj': 1.25, 'loss_cls': 1.25}, ['warn', 'hold'],
              'loss_obj is 1.25 times its pretrained value, limit 1.2; this stage is held'),
        event(5, 5 * ITERS, 'drift', 'validation', {'loss_obj': 1.57, 'loss_cls': 1.57}, ['lower_rate', 'rollback'],
              'loss_obj is 1.57 times its pretrained value <script>alert("x")</script> & the rate is halved'),
        event(7, 7 * ITERS - 12, 'divergence', 'training', {'loss': 96.0}, ['warn'], 'loss 96 has grown tenfold'),
        event(8, 8 * ITERS, 'drift', 'validation', {'loss_obj': 2.2, 'loss_cls': 2.2}, ['stop'],
              'loss_obj is 2.21 times its pretrained value after two rollbacks; the run is stopped')]


def random_start(content: dict[str, Any]) -> None:
    """Weights that were never trained: the baseline is that of a random start, and nothing is ever found."""
    content['baseline']['pretrained'] = {name: value * 0.99 for name, value in content['baseline']['random'].items()}
    for figures in (content['baseline']['pretrained'], *(each['metrics'] for each in content['validations'])):
        figures.update({name: 0.0 for name in figures if 'mAP' in name})


def with_nan(content: dict[str, Any]) -> None:
    """Steps that were not finite, and a validation after them."""
    content['bad_steps'] = 3
    content['validations'][12]['metrics']['val/loss_coord'] = None
    content['events'].append(event(12, 12 * ITERS + 7, 'nan', 'training', {'loss': None}, ['warn'],
                                   'loss is nan; the step is left out'))


def backbone(content: dict[str, Any]) -> None:
    """Only the backbone was pretrained: the losses begin at a random start's."""
    content['start'] = 'backbone'
    content['baseline']['pretrained'] = dict(content['baseline']['random'])
    content['stages'] = [dict(name='neck and head', first_epoch=0, first_iter=0),
                         dict(name='everything', first_epoch=10, first_iter=10 * ITERS)]
    for each in content['validations']:
        for name, value in RANDOM.items():
            each['metrics'][f'val/{name}'] += value * math.exp(-each['epoch'] / 2)
        each['metrics']['val/loss'] = sum(each['metrics'][f'val/{name}'] for name in RANDOM)
        each['stage'] = 'neck and head' if each['epoch'] <= 10 else 'everything'
    for name in (MAP, MAP50):
        del content['validations'][0]['metrics'][name]


def nothing(content: dict[str, Any]) -> None:
    """No weights were loaded."""
    content['start'] = 'nothing'
    content['baseline']['pretrained'] = {}


def no_validation(content: dict[str, Any]) -> None:
    """A run that has just begun."""
    content.update(validations=[], events=[], stages=content['stages'][:1], ended=None)


CHANGES = dict(too_hot=too_hot, random_start=random_start, nan=with_nan, backbone=backbone, nothing=nothing,
               no_validation=no_validation)
KINDS = ('good', *CHANGES)


def scalars(content: dict[str, Any], first: int = 1, last: int | None = None, every: int = 10,
            shift: float = 0.0) -> list[dict[str, Any]]:
    """Lines of ``scalars.json`` for the iterations first to last of a run."""
    rng = np.random.default_rng(first)
    validations, rows = content['validations'], []
    end = last or (validations[-1]['iter'] if validations else 15)
    for step in range(-(-first // every) * every, end + 1, every):
        noise = 1 + 0.18 * rng.standard_normal(4)
        fall = 1.4 - 0.45 * (1 - math.exp(-step / 300)) + (0.25 if step > 5 * ITERS else 0)
        terms = {name: value * fall * float(part) + shift for (name, value), part in zip(PRETRAINED.items(), noise)}
        if any(abs(each['iter'] - step) < every and each['kind'] != 'drift' for each in content['events']):
            terms['loss_obj'] *= 5
        epoch = (step - 1) // ITERS + 1
        since = (step - 1) % (5 * ITERS) if step <= 10 * ITERS else step - 10 * ITERS
        rate = 1e-4 * min(1.0, (since + 1) / (2 * ITERS)) * (0.5 if step > 5 * ITERS else 1)
        rows.append(dict(
            lr=rate, backbone_lr=rate * 0.1 if epoch > 10 else 0.0, neck_lr=rate if epoch > 5 else 0.0,
            bbox_head_lr=rate, data_time=0.01, loss=sum(terms.values()), **terms, time=0.3, epoch=epoch, iter=step,
            memory=0, step=step))
        done = [each for each in validations if step - every < each['iter'] <= step]
        rows += [dict(each['metrics'], data_time=0.01, time=0.2, step=each['epoch']) for each in done]
    return rows


def write_run(folder: Path, kind: str = 'good', old: bool = False) -> Path:
    """Write a work folder and return it."""
    content = guard(kind, old)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'guard.json').write_text(json.dumps(content))
    write_scalars(folder / '20261124_100000', scalars(content))
    return folder


def write_scalars(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the log of one start of a run, as mmengine writes it."""
    (folder / 'vis_data').mkdir(parents=True, exist_ok=True)
    path = folder / 'vis_data' / 'scalars.json'
    path.write_text(''.join(json.dumps(each) + '\n' for each in rows))
    return path


if __name__ == '__main__':
    if len(sys.argv) != 3 or sys.argv[1] not in KINDS:
        sys.exit(f'usage: python tests/support/run_folder.py {"|".join(KINDS)} DIR')
    print(write_run(Path(sys.argv[2]), sys.argv[1], old=True))
