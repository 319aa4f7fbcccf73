"""Check the dataset and weights, then test by mmdet's own script; options and their meanings are mmdet's."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mgdet_plugin.cli.parser import Parser, cfg_options
from mgdet_plugin.common.errors import require
from mgdet_plugin.common.files import check_destination
from mgdet_plugin.common.resources import config_path
from mgdet_plugin.common.weights_path import check_weights_path


def test_parser() -> Parser:
    """The options of mmdet's test script, and ours."""
    parser = Parser(__name__, __doc__)
    parser.add_argument('config', metavar='CFG', help='its path, or the name of a config of the package')
    parser.add_argument('checkpoint', metavar='CKPT', help='weights that an import or a training run wrote')
    parser.add_launch_options()
    parser.add_argument('--out', metavar='F.pkl', help='write the predictions')
    parser.add_argument('--show', action='store_true', help='show the predictions in windows')
    parser.add_argument('--show-dir', metavar='D', help='folder for pictures of the predictions, below the work folder')
    parser.add_argument('--wait-time', type=float, default=2, metavar='S', help='seconds to show each (default: 2)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--demo', action='store_true', help="the small model on embedded data in place of the config's")
    parser.add_argument('--verbose', action='store_true', help='print all that the log file has')
    return parser


def test_command(arguments: Sequence[str]) -> int:
    """Check, then test."""
    parser = test_parser()
    args = parser.parse_args(arguments)
    require(not args.out or args.out.endswith(('.pkl', '.pickle')), '--out must name a .pkl file (COCO JSON is written '
            'by --cfg-options test_evaluator.outfile_prefix=NAME)', args.out)
    if args.out:
        check_destination(Path(args.out))
    args.config = config_path(args.config)
    cfg_options(args.cfg_options)  # refuses what mmdet's parser would fail on
    if '://' not in args.checkpoint:  # a remote address is left to mmengine
        check_weights_path(args.checkpoint, str(args.config))
    import mgdet_plugin.guard  # noqa: F401  configs of earlier versions do not name it in custom_imports
    from mgdet_plugin.cli.training.demo import use_demo
    from mgdet_plugin.compat.console import PROGRESS, SHORT, VERBOSE, show
    from mgdet_plugin.engine.mmdet_scripts import run_mmdet_script
    from mgdet_plugin.engine.preflight import prepare_test
    show(VERBOSE if args.verbose else SHORT, tables=True)
    args.verbose = False  # which mmdet's script does not know
    words = use_demo(parser.command_line(args), train=False)
    prepare_test(words)
    try:
        run_mmdet_script('test', words)
    finally:
        PROGRESS.clear()
    return 0
