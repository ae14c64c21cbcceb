"""What is on a picture: all of it inside, nothing over anything else, bars from 0, and what the command draws today."""

import re
from itertools import combinations
from statistics import median

import matplotlib
import pytest
from matplotlib.collections import PathCollection
from matplotlib.testing.compare import compare_images
from matplotlib.text import Text
from pages import README, ROOT
from pictures import PICTURES, demo_results

from timm_stochdepth.bench.measure import Row
from timm_stochdepth.bench.report import draw_rows
from timm_stochdepth.demo.pictures import draw_losses, draw_networks
from timm_stochdepth.demo.recipe import Recipe
from timm_stochdepth.demo.report import format_agreement, format_results
from timm_stochdepth.demo.train import Result
from timm_stochdepth.output.plots import draw_rates, save_figure

LONG = 'vit_so150m2_patch16_reg1_gap_256, of a long name'


def row(name, ratio, limit):
    return Row(name, ratio, ratio - 0.02, ratio + 0.02, limit, ratio - limit, 0, 1, 30, None, {}, {})


def result(name, method, seed, losses, num_blocks=54):
    rates = {f'layer{i}.{i}': i / num_blocks for i in range(num_blocks)} if method != 'plain' else {}
    top1s = {epoch: 10.0 * epoch for epoch in range(1, 5)}
    return Result(name, method, seed, len(losses) // 4, losses, [0.1] * len(losses), top1s, rates, rates)


def results(methods, seeds, name='resnet50'):
    # losses that rise and losses that fall: there is no corner that is always free
    curves = [[2.0 + (-1) ** i * step / 40 for step in range(40)] for i in range(len(methods))]
    return [result(name, method, seed, losses) for method, losses in zip(methods, curves) for seed in range(seeds)]


METHODS = ['plain', 'timm', 'skip', 'sample', 'block']
HARD = {
    'losses': lambda: draw_losses(results(METHODS, 3), Recipe()),
    'losses of long names': lambda: draw_losses(
        results(METHODS[:2], 1, LONG) + results(METHODS[:2], 1, LONG[::-1]), Recipe(data='fashion-mnist')
    ),
    'networks': lambda: draw_networks(results(METHODS, 2), Recipe()),
    'networks of long names': lambda: draw_networks(results(METHODS[3:], 3, LONG), Recipe()),
    'rows': lambda: draw_rows([row('plain', 1.0, 1.0), row('block', 0.2, 0.1), row('slow', 1.9, 1.0)], LONG * 2),
    'rates': lambda: draw_rates('net', {f'layer{i}.0': 0.1 * i for i in range(4)}),
    'rates of many blocks': lambda: draw_rates(LONG * 3, {f'stages.3.blocks.{i}': i / 99 for i in range(100)}),
}
FIGURES = {**{str(path.relative_to(ROOT)): make for path, make in PICTURES.items()}, **HARD}


@pytest.fixture(params=FIGURES.values(), ids=FIGURES)
def figure(request):
    figure = request.param()
    figure.draw_without_rendering()
    return figure


def texts(figure):
    """All that is seen: matplotlib keeps labels of ticks outside of the axes too."""
    hidden = {
        id(label)
        for axes in figure.axes
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim())))
        for tick in axis.get_major_ticks()
        if not low <= tick.get_loc() <= high
        for label in (tick.label1, tick.label2)
    }
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]


def extent(artist):
    return artist.get_window_extent()


def marks(axes):
    """Points of what is drawn as lines and markers, and the boxes of bars, in pixels."""
    points = [point for line in axes.get_lines() for point in line.get_transform().transform(line.get_xydata())]
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            points += list(collection.get_offset_transform().transform(collection.get_offsets()))
    return points, [extent(patch) for patch in axes.patches]


def test_every_text_is_inside(figure):
    for text in texts(figure):
        box = extent(text)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text


def test_no_text_is_on_another(figure):
    for one, other in combinations(texts(figure), 2):
        assert not extent(one).padded(-1).overlaps(extent(other).padded(-1)), (one, other)


def test_nothing_is_drawn_under_a_legend(figure):
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())] + figure.legends
    for axes in figure.axes:
        points, boxes = marks(axes)
        for box in map(extent, legends):
            assert not any(box.contains(*point) for point in points)
            assert not any(box.overlaps(bar) for bar in boxes)


def test_bars_begin_at_0_and_are_inside_of_their_axes(figure):
    for axes in figure.axes:
        for patch in axes.patches:
            box, inside = extent(patch), axes.bbox.padded(1)
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            along_x = axes.get_xlim()[0] == 0
            assert (patch.get_x() if along_x else patch.get_y()) == 0


def test_each_curve_is_explained(figure):
    explained = {line.get_color() for legend in figure.legends for line in legend.get_lines()}
    curves = {line.get_color() for axes in figure.axes if not axes.patches for line in axes.get_lines()}
    assert curves == explained


@pytest.mark.skipif(matplotlib.__version_info__ < (3, 11), reason='earlier versions draw fonts and ticks otherwise')
@pytest.mark.parametrize('path', PICTURES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_picture_is_what_the_command_draws_today(path, tmp_path):
    drawn = tmp_path / path.name
    save_figure(PICTURES[path](), drawn)
    difference = compare_images(str(path), str(drawn), tol=1)
    assert difference is None, f'python tools/pictures.py draws it anew: {difference}'


def test_every_picture_of_the_pages_is_drawn_from_recorded_figures():
    assert {*(ROOT / 'docs').rglob('*.png'), *(ROOT / 'benchmarks').rglob('*.png')} == set(PICTURES)


def test_the_pages_say_what_is_recorded():
    page = (ROOT / 'docs' / 'demo.md').read_text()
    results, _ = demo_results('fashion_mnist')
    assert f'```\n{format_results(results)}\n```' in page
    words = re.search(
        r'differ by (\S+) at the most in the first 10 steps, by (\S+) in all 200', format_agreement(results)
    )
    assert f'by {words[1]} at the most in the first 10 steps, by {words[2]} in all' in page
    ratio = median(a / b for a, b in zip(*(r.step_seconds for r in reversed(results))))
    assert f'The same losses in {ratio:.2f} of the time' in README.read_text()
    top1s = [f'{r.top1:.2f}' for r in demo_results('demo')[0]]
    assert '{}, {} and {}% top-1'.format(*top1s) in page
