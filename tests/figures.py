"""The figures of README and docs/benchmarks.md, as tables made from the files of benchmarks/.

`python tests/figures.py` writes them into the pages, and the tests compare.
"""

import json
import re

from pages import README, ROOT

PAGE = ROOT / 'docs' / 'benchmarks.md'
FOLDER = ROOT / 'benchmarks'
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
        settings = figures['settings']
        rows.append([
            f'{settings["model"]}, {settings["rate"]} {settings["distribution"]}',
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
        settings = figures['settings']
        rows.append([
            f'{settings["model"]}, {settings["rate"]} {settings["distribution"]}',
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
        rows = []
        for row in by_name.values():
            counts = row['count_ratios']
            rows.append([
                row['name'],
                time_of(row),
                f'{row["limit"]:.3f}' if row['limit'] < 1 else '',
                *('' if counts[k] is None else f'{counts[k]:.3f}' for k in ('operations', 'bytes', 'kernels', 'kept')),
            ])
        parts.append(
            f'### {title}\n\nBatch {settings["batch_size"]} at {settings["img_size"]} pixels, {figures["device"]},'
            f' torch {figures["versions"]["torch"]}, {by_name["plain"]["rounds"]} rounds.\n\n'
            + table(['network', 'time', 'limit', 'operations', 'bytes', 'kernels', 'kept'], rows)
        )
    return '\n'.join(parts)


TABLES = {'headline': headline, 'again': again, 'details': details}


def with_figures(text):
    """A page with its tables made anew."""
    for name, make in TABLES.items():
        begin, end = f'<!-- figures: {name} -->\n', '<!-- end of figures -->\n'
        pattern = f'({re.escape(begin)}).*?({re.escape(end)})'
        text = re.sub(pattern, lambda m, make=make: f'{m[1]}{make()}{m[2]}', text, flags=re.S)
    return text


if __name__ == '__main__':
    for page in (README, PAGE):
        page.write_text(with_figures(page.read_text()))
