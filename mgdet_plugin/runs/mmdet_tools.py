"""The tools that mmdet ships, on our configs: what they take for granted is seen to, what they raise is one line."""
from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import Config
from mmengine.fileio import dump, load

from mgdet_plugin.common.errors import SHOW_ALL, UserError
from mgdet_plugin.common.resources import CONFIGS, SUFFIXES, config_path, mmdet_script
from mgdet_plugin.datasets import ensure_embedded_data
from mgdet_plugin.engine.mmdet_scripts import run_mmdet_script

INSTEAD = {
    'analysis_tools/analyze_logs': 'plot_run WORK_DIR draws losses, rates and metrics of a run',
    'analysis_tools/benchmark': '--task inference needs CUDA; benchmark.py in a checkout times the model against peers',
    'analysis_tools/coco_occluded_separated_recall': 'it is for masks',
    'analysis_tools/eval_metric': 'VOCMetric, as all without ann_file, needs the annotations that --out leaves out: '
                                  'test.py measures by it',
    'analysis_tools/fuse_results': 'mmdet 3.3.0 never reads the files it is given; blend_weights averages two '
                                   'checkpoints of a model',
    'analysis_tools/robustness_eval': 'leave out --metric: the names it takes are not those of the results',
}
"""What to use in place of a tool that failed, or why it cannot work."""
NEEDS = {
    'analysis_tools/analyze_logs': ('seaborn', 'seaborn'),
    'analysis_tools/benchmark': ('psutil', 'psutil'),
    'analysis_tools/test_robustness': ('imagecorruptions', 'imagecorruptions-imaug'),  # the other one is for numpy 1
}
"""Tool -> the module it cannot do without and nothing else of ours needs, and the package that has it."""

SAID = {
    'analysis_tools/browse_dataset': 'it runs the pipeline outside of a run, where no plan mixes images: look CFG '
                                     'draws mosaics, mixups and old images as a stage trains on them',
}
"""What a person should know of what a tool shows."""


def run_tool(name: str, arguments: Sequence[str]) -> None:
    """Run one of mmdet's tools in this process.

    Args:
        name: Its place under mmdet's ``tools``, without ``.py``.
        arguments: Its command line, in which a config may be named as ours are.

    Raises:
        UserError: A package that it needs is not installed; or whatever the tool raises, in a line, and as it is where
            ``MGDET_TRACEBACK`` is set.
    """
    module, package = NEEDS.get(name, ('mmdet', ''))
    if find_spec(module) is None:
        raise UserError(_to_install(name, package))
    words = [_config_word(word) for word in arguments]
    if name in SAID:
        print(f"mmdet's {name}: {SAID[name]}", file=sys.stderr)
    sys.path.append(str(mmdet_script('train').parents[1]))  # some import others as tools.analysis_tools...
    try:
        with TemporaryDirectory() as folder:
            run_mmdet_script(name, _adapted(name, words, Path(folder)))
    except UserError:
        raise
    except Exception as error:
        if os.environ.get(SHOW_ALL):
            raise
        raise UserError(fault(name, error)) from error


def _config_word(word: str) -> str:
    """The path of a config where a word of a command line is the name of one of ours and no file."""
    return str(config_path(word)) if not os.path.exists(word) and (CONFIGS / f'{word}.py').is_file() else word


def _adapted(name: str, words: list[str], folder: Path) -> list[str]:
    """The command line with files in place of those that a tool cannot take as they are."""
    for index, word in enumerate(words):
        if not os.path.isfile(word):
            continue
        if name == 'analysis_tools/coco_error_analysis' and words[index - 1] == '--ann':
            annotations = load(word)
            there = {each['category_id'] for each in annotations['annotations']}
            annotations['categories'] = [  # a class without objects would count as one that is never found
                dict(dict(supercategory=each['name']), **each) for each in annotations['categories']
                if each['id'] in there]
            dump(annotations, folder / 'annotations.json')
            words[index] = str(folder / 'annotations.json')
        elif name.startswith('analysis_tools/') and word.endswith(SUFFIXES[:-1]):
            cfg = Config.fromfile(word)
            ensure_embedded_data(cfg)
            if adapt := ADAPTED.get(name):
                adapt(cfg)
                words[index] = str(folder / Path(word).with_suffix('.py').name)
                cfg.dump(words[index])
            break
    return words


def _judge_by_the_test_set(cfg: Config) -> None:
    """``eval_metric`` holds predictions on the test set against the annotations of the validation set."""
    cfg.val_evaluator = cfg.test_evaluator


def _name_anchors_as_yolov3(cfg: Config) -> None:
    """``optimize_anchors`` asks YOLOv3's anchor generator how many anchors there are."""
    head = cfg.model.bbox_head
    if 'anchors' in head:
        head.anchor_generator = dict(type='YOLOAnchorGenerator', base_sizes=head.anchors, strides=head.strides)


def _allow_no_pretrained(cfg: Config) -> None:
    """``test_robustness`` sets a field of the backbone's ``init_cfg``, which may be none."""
    cfg.model.backbone.setdefault('init_cfg', {})


ADAPTED: dict[str, Callable[[Config], None]] = {
    'analysis_tools/eval_metric': _judge_by_the_test_set,
    'analysis_tools/optimize_anchors': _name_anchors_as_yolov3,
    'analysis_tools/test_robustness': _allow_no_pretrained,
}


def fault(name: str, error: Exception) -> str:
    """What a tool of mmdet raised, where, and what to do about it, in a line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().splitlines() or ['']
    said = lines[-1 if lines[0].startswith('Caught ') else 0]  # from a loader's process comes a whole traceback
    said = said or str(place.line)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f'{_to_install(name, error.name)}; {SHOW_ALL}=1 shows the traceback'
    instead = f'; {INSTEAD[name]}' if name in INSTEAD else ''
    return (f"mmdet's {name} ended with {type(error).__name__}: {said} ({Path(place.filename).name}, line "
            f"{place.lineno}){instead}; {SHOW_ALL}=1 shows the traceback, --help the tool's arguments")


def _to_install(name: str, package: str) -> str:
    """What a tool lacks, how to get it, and what there is in its place."""
    instead = f'; {INSTEAD[name]}' if name in INSTEAD else ''
    return f"mmdet's {name} needs the package {package}, which is not installed: pip install {package}{instead}"
