"""The figures of README, docs/benchmarks.md and docs/demo.md, as tables made from the files of benchmarks/.

`python tools/figures.py` writes them into the pages, and the tests compare. With the folder of a demo of several seeds
it first notes what its runs showed.
"""

import json
import re
import sys
from pathlib import Path

from timm_stochdepth.demo.intervals import mean_interval

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md'
PAGE = ROOT / 'docs' / 'benchmarks.md'
DEMO_PAGE = ROOT / 'docs' / 'demo.md'
FOLDER = ROOT / 'benchmarks'
STUDY = FOLDER / 'demo' / 'resnet110_fashion_mnist.json'
# the networks of the README, of which a second run is in benchmarks/again
HEADLINES = (
    'vit_small_patch16_224_rate0.4_cpu_uniform',
    'vit_small_patch16_224_rate0.4_cpu',
    'convnext_atto_rate0.4_cpu_uniform',
    'swin_tiny_patch4_window7_224_rate0.4_cpu_uniform',
)
SKIPPED, PEER = 'sample, skip_dropped', 'timm DropPath'


def read(stem, folder=FOLDER):
    """Figures of a run, and its rows by name."""
    figures = json.loads((folder / f'{stem}.json').read_text())
    return figures, {row['name']: row for row in figures['rows']}


def time_of(row):
    return f'{row["ratio"]:.3f} ± {(row["high"] - row["low"]) / 2:.3f}'


def name_of(settings):
    return f'{settings["model"]}, {settings["rate"]} {settings["distribution"]}'


def compiled_stem(stem):
    return stem.replace('_uniform', '') + '_compile' + ('_uniform' if stem.endswith('_uniform') else '')


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def headline():
    """The README's table: one line a network and rate."""
    rows = []
    for stem in HEADLINES:
        figures, eager = read(stem)
        _, compiled = read(compiled_stem(stem))
        rows.append([
            name_of(figures['settings']),
            *(time_of(row) for row in (eager[PEER], eager[SKIPPED], compiled[SKIPPED])),
            f'{eager[SKIPPED]["limit"]:.2f}',
            f'{eager[SKIPPED]["count_ratios"]["kept"]:.2f}',
        ])
    return table(
        ['network, drop rate', 'timm DropPath', 'skipped', 'skipped, compiled', 'operations left', 'memory kept'], rows
    )


def again():
    """Both runs of what the README shows."""
    rows = []
    for stem in HEADLINES:
        figures, first = read(stem)
        _, second = read(stem, FOLDER / 'again')
        rows.append([
            name_of(figures['settings']),
            *(time_of(run[name]) for name in (PEER, SKIPPED) for run in (first, second)),
        ])
    return table(['network, drop rate', PEER, 'again', 'skipped', 'again'], rows)


def details():
    """Each run: times, and what a step does."""
    parts = []
    for file in sorted(FOLDER.glob('*.json')):
        figures, by_name = read(file.stem)
        settings = figures['settings']
        if settings['ddp']:
            continue
        flags = [f for f in ('compile', 'inference', 'amp', 'channels_last') if settings[f]]
        title = ', '.join([settings['model'], f'rate {settings["rate"]} {settings["distribution"]}', *flags])
        # counts are those of eager steps
        columns = [] if settings['compile'] else ['operations', 'bytes', 'kernels', 'kept']
        rows = []
        for row in by_name.values():
            counts = [row['count_ratios'][column] for column in columns]
            rows.append([
                row['name'],
                time_of(row),
                f'{row["limit"]:.3f}' if row['limit'] < 1 else '',
                *('' if ratio is None else f'{ratio:.3f}' for ratio in counts),
            ])
        parts.append(
            f'### {title}\n\nBatch {settings["batch_size"]} at {settings["img_size"]} pixels, {figures["device"]},'
            f' torch {figures["versions"]["torch"]}, {by_name["plain"]["rounds"]} rounds.\n\n'
            + table(['network', 'time', 'limit', *columns], rows)
        )
    return '\n'.join(parts)


def h100():
    """The runs on a GPU: times, the most memory in use, and the bytes that a step moves."""
    parts = []
    for file in sorted((FOLDER / 'h100').glob('*.json')):
        figures, by_name = read(file.stem, FOLDER / 'h100')
        settings = figures['settings']
        rows = [
            [
                row['name'],
                f'{row["ratio"]:.3f}',
                f'{row["low"]:.3f} to {row["high"]:.3f}',
                f'{row["limit"]:.3f}' if row['limit'] < 1 else '',
                f'{row["milliseconds"]:.0f}',
                f'{row["memory"] / 1e9:.1f}',
                f'{row["count_ratios"]["bytes"]:.3f}',
            ]
            for row in by_name.values()
        ]
        channels_last = ', channels_last' if settings['channels_last'] else ''
        parts.append(
            f'{settings["model"]}, rate {settings["rate"]} {settings["distribution"]}: batch {settings["batch_size"]}'
            f' at {settings["img_size"]} pixels, bfloat16{channels_last}, {by_name["plain"]["rounds"]} rounds.\n\n'
            + table(['network', 'time', '95% interval', 'limit', 'ms', 'GB at peak', 'bytes'], rows)
        )
    return '\n'.join(parts)


def note_study(folder):
    """Keep what the runs of a demo showed, but not each step."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob('*/run.json'))]
    for run in runs:
        losses = run['result'].pop('step_losses')
        epoch = run['result']['steps_per_epoch']
        run['result'] = {k: v for k, v in run['result'].items() if not isinstance(v, list) and not k.startswith('drop')}
        run['result']['last_epoch_loss'] = sum(losses[-epoch:]) / epoch
    STUDY.parent.mkdir(exist_ok=True)
    STUDY.write_text(json.dumps(runs, indent=1) + '\n')


def study():
    """Mean over the seeds of each method, and of the difference to none, with Student's 95% intervals."""
    results = [run['result'] for run in json.loads(STUDY.read_text())]
    top1s = {
        m: {r['seed']: r['top1s']['20'] for r in results if r['method'] == m} for m in ('plain', 'sample', 'block')
    }
    rows = []
    for method, by_seed in top1s.items():
        cells = [mean_interval(list(by_seed.values()))]
        if method != 'plain':
            cells.append(mean_interval([top1 - top1s['plain'][seed] for seed, top1 in by_seed.items()]))
        losses = [r['last_epoch_loss'] for r in results if r['method'] == method]
        rows.append([
            method,
            '{:.2f} ± {:.2f}'.format(*cells[0]),
            '{:+.2f} ± {:.2f}'.format(*cells[1]) if cells[1:] else '',
            f'{sum(losses) / len(losses):.3f}',
            str(len(by_seed)),
        ])
    return table(['method', 'top-1 in %', 'minus plain', 'training loss, last epoch', 'seeds'], rows)


TABLES = {'headline': headline, 'again': again, 'details': details, 'h100': h100, 'study': study}


def with_figures(text):
    """A page with its tables made anew."""
    for name, make in TABLES.items():
        begin, end = f'<!-- figures: {name} -->\n', '<!-- end of figures -->\n'
        pattern = f'({re.escape(begin)}).*?({re.escape(end)})'
        text = re.sub(pattern, lambda m, make=make: f'{m[1]}{make()}{m[2]}', text, flags=re.S)
    return text


if __name__ == '__main__':
    for study_folder in sys.argv[1:]:
        note_study(Path(study_folder))
    for page in (README, PAGE, DEMO_PAGE):
        page.write_text(with_figures(page.read_text()))
