"""What is measured and how, one object: nothing here is slow to import."""
from dataclasses import dataclass, field
from typing import Any, Dict, List, Tuple

__all__ = ['ALL_ROWS', 'HOST_ROWS', 'ROWS', 'SKIPPING_ROWS', 'BenchSettings']

# short name: the row's name in tables and files
ROWS = {
    'plain': 'plain',
    'again': 'plain, again',
    'timm': 'timm DropPath',
    'torchvision': 'torchvision StochasticDepth',
    'dinov2': 'DINOv2',
    'conditional': 'conditional skip',
    'sample': 'sample',
    'skip': 'sample, skip_dropped',
    'block': 'block',
}
# what is compared where the host's time is measured
HOST_ROWS = {
    **{name: ROWS[name] for name in ('timm', 'sample', 'block', 'dinov2', 'skip')},
    'ahead': 'sample, skip_dropped, drawn as on a GPU',
}
# and where it is asked for
ALL_ROWS = {
    **ROWS,
    **HOST_ROWS,
    'round': 'sample, skip_dropped, round_up',
    'fixed': "sample, skip_dropped, draw='fixed'",
}
# need branches that can be left out
SKIPPING_ROWS = ('dinov2', 'conditional', 'skip', 'block', 'ahead', 'round', 'fixed')


@dataclass(frozen=True)
class BenchSettings:
    """What is measured and how.

    Attributes:
        model: A plain network of timm.
        rate: Drop rate of the networks.
        distribution: `'linear'` or `'uniform'`.
        rows: Networks to compare, keys of `ALL_ROWS`; the plain one is always there.
        batch_size: Images in a batch, of each rank.
        img_size: Size of an image, in pixels.
        model_args: Arguments of the network that this size needs.
        amp: Autocast to bfloat16.
        channels_last: Memory format of images and weights.
        compile: Run each network under torch.compile.
        inference: Forward alone, in eval mode.
        ddp: Under DistributedDataParallel.
        device: Name of the device.
        max_rounds: Steps of each network at the most.
        max_seconds: No round starts later than this after the first one that counts.
    """
    model: str
    rate: float
    distribution: str = 'linear'
    rows: Tuple[str, ...] = tuple(ROWS)
    batch_size: int = 16
    img_size: int = 96
    model_args: Dict[str, Any] = field(default_factory=dict)
    amp: bool = False
    channels_last: bool = False
    compile: bool = False
    inference: bool = False
    ddp: bool = False
    device: str = 'cpu'
    max_rounds: int = 100
    max_seconds: int = 3600

    @property
    def input_size(self) -> Tuple[int, int, int]:
        """Shape of an image."""
        return 3, self.img_size, self.img_size

    @property
    def flags(self) -> List[str]:
        """Names of what is not as usual."""
        names = [name for name in ('amp', 'channels_last', 'compile', 'inference', 'ddp') if getattr(self, name)]
        return names + (['uniform'] if self.distribution == 'uniform' else [])

    @property
    def stem(self) -> str:
        """Name of the files that figures go to, without suffix."""
        return '_'.join([self.model, f'rate{self.rate}', self.device.partition(':')[0], *self.flags])

    @property
    def title(self) -> str:
        """The same for readers."""
        text = f'{self.model}, rate {self.rate}, {self.batch_size} x {self.img_size}px'
        return ', '.join([text, *self.flags])
