"""Look for what is wrong with pictures and boxes, before training: nothing is changed."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import FORMATS, Parser, cfg_options
from mgdet_plugin.common.files import check_folder
from mgdet_plugin.common.resources import config_path


def doctor_command(arguments: Sequence[str]) -> int:
    """Print what was found, the worst first; 0 for nothing or notes, 1 for warnings, 3 for errors."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('source', metavar='CFG|DATA', help='a config; or a folder of pictures and annotations or '
                        'an annotation file, in any format that init reads')
    parser.add_argument('--out', metavar='DIR', help='folder for a page of pictures and doctor.json')
    parser.add_argument('--json', action='store_true', help='print doctor.json in place of the lines')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of the pictures of DATA (default: found '
                        'beside it)')
    parser.add_argument('--format', choices=FORMATS, help='of DATA (default: the one that is found)')
    parser.add_argument('--classes', type=Path, metavar='NAMES', help='file of class names, one a line, where DATA '
                        'numbers them')
    parser.add_argument('--config', default='mgdet_model5_stage1', metavar='CFG',
                        help='whose input size and anchors DATA is held against (default: mgdet_model5_stage1)')
    parser.add_argument('--weights', metavar='CKPT', help="whose classes to compare (default: the config's load_from)")
    parser.add_argument('--pictures', type=int, metavar='N', help='decode N pictures only, evenly spread; 0: none')
    parser.add_argument('--tiny', type=float, default=4.0, metavar='PX',
                        help='side of a box in the input, in pixels, below which it is tiny (default: 4)')
    parser.add_argument('--fit', type=float, default=0.25, metavar='X',
                        help='overlap (IoL) with its best anchor below which a box fits none (default: 0.25)')
    parser.add_cfg_options()
    args = parser.parse_args(arguments)
    if not Path(args.source).exists():
        config_path(args.source)
    if args.out:
        check_folder(Path(args.out))
    from mgdet_plugin.common.name_lists import text_names
    from mgdet_plugin.datasets.sources.annotated import Hints
    from mgdet_plugin.prepare.faults.doctor import examine, write_examination
    from mgdet_plugin.prepare.faults.findings import exit_code
    hints = Hints(args.classes and text_names(args.classes, f'--classes {args.classes}'), args.images)
    found = examine(args.source, args.config, args.format, hints, args.weights, args.pictures, args.tiny, args.fit,
                    cfg_options(args.cfg_options))
    paths = write_examination(found, args.out) if args.out else []
    print(json.dumps(found.as_json(), indent=1) if args.json else '\n'.join([*found.lines(), *map(str, paths)]))
    return exit_code(found.findings)
