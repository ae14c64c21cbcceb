"""The pictures of README, docs/ and benchmarks/, drawn from the figures in benchmarks/.

`python tools/pictures.py` draws them. `python tools/pictures.py demo=DIR fashion_mnist=DIR` first notes the runs of a
demo, those in its `--out`.
"""

import json
import sys
from pathlib import Path

from figures import FOLDER, ROOT

from timm_stochdepth.bench.measure import Row
from timm_stochdepth.bench.report import draw_rows
from timm_stochdepth.bench.settings import BenchSettings
from timm_stochdepth.demo.pictures import draw_losses, draw_networks
from timm_stochdepth.demo.recipe import Recipe
from timm_stochdepth.demo.run_folder import result_of
from timm_stochdepth.output.plots import save_figure

DEMOS = {'demo': draw_networks, 'fashion_mnist': draw_losses}


def demo_file(name):
    return FOLDER / 'demo' / f'{name}.json'


def note_runs(name, folder):
    runs = [json.loads(file.read_text()) for file in Path(folder).glob('*/run.json')]
    order = runs[0]['result']['beside']
    runs.sort(key=lambda run: order.index(result_of(run).label))
    demo_file(name).write_text('[\n' + ',\n'.join(map(json.dumps, runs)) + '\n]\n')


def demo_results(name):
    """What the runs of a demo showed, and how they were trained."""
    runs = json.loads(demo_file(name).read_text())
    return [result_of(run) for run in runs], Recipe(**runs[0]['settings']['recipe'])


def bench_figure(path):
    figures = json.loads(path.read_text())
    title = f'{BenchSettings(**figures["settings"]).title}\n{figures["device"]}'
    not_kept = dict(counts=None, count_ratios={}, by_op={})
    return draw_rows([Row(**{**not_kept, **row}) for row in figures['rows']], title)


# by file, what draws it
PICTURES = {
    **{ROOT / 'docs' / f'{n}.png': lambda n=n, draw=draw: draw(*demo_results(n)) for n, draw in DEMOS.items()},
    **{path: lambda path=path: bench_figure(path.with_suffix('.json')) for path in sorted(FOLDER.glob('*.png'))},
}


if __name__ == '__main__':
    for argument in sys.argv[1:]:
        note_runs(*argument.split('=', 1))
    for picture, make in PICTURES.items():
        save_figure(make(), picture, force=True)
