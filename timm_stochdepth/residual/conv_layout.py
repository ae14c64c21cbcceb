"""Convolutions of a batch whose size the compiler does not know.

It predicts the memory format of a convolution's result by asking the kernel, which it can where all sizes have a value
(https://github.com/pytorch/pytorch/blob/v2.14.1/torch/_subclasses/fake_impls.py, `conv`), and else takes it to be
contiguous, which it is not under channels_last. So these convolutions are operators whose result has a known format.
"""
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

__all__ = ['known_layout']

_TAGS = (torch.Tag.needs_fixed_stride_order,)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


def _format_of(x: Tensor) -> torch.memory_format:
    # by one stride: nothing else of the size of an unknown batch can be compared
    is_channels_last = x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1
    return torch.channels_last if is_channels_last else torch.contiguous_format


def _empty(size: Sequence[int], like: Tensor) -> Tensor:
    """An empty tensor in the memory format of another."""
    if _format_of(like) == torch.channels_last:
        return like.new_empty((size[0], *size[2:], size[1])).permute(0, 3, 1, 2)
    return like.new_empty(tuple(size))


torch.library.define(
    'timm_stochdepth::convolution',
    '(Tensor x, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups)'
    ' -> Tensor',
    tags=_TAGS,
)
torch.library.define(
    'timm_stochdepth::convolution_backward',
    '(Tensor grad, Tensor x, Tensor weight, bool has_bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation,'
    ' SymInt groups) -> (Tensor, Tensor, Tensor)',
    tags=_TAGS,
)


@torch.library.impl('timm_stochdepth::convolution', 'default')
def _(
        x: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        stride: List[int],
        padding: List[int],
        dilation: List[int],
        groups: int,
) -> Tensor:
    y = torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
    return y.contiguous(memory_format=_format_of(x))


@torch.library.register_fake('timm_stochdepth::convolution')
def _(
        x: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        stride: List[int],
        padding: List[int],
        dilation: List[int],
        groups: int,
) -> Tensor:
    spatial = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation)]
    return _empty((x.shape[0], weight.shape[0], *spatial), x)


@torch.library.impl('timm_stochdepth::convolution_backward', 'default')
def _(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        has_bias: bool,
        stride: List[int],
        padding: List[int],
        dilation: List[int],
        groups: int,
) -> Tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0] * len(stride), groups,
        [True, True, has_bias])
    return (
        grad_x.contiguous(memory_format=_format_of(x)),
        grad_weight.contiguous(memory_format=_format_of(weight)),
        grad_bias if has_bias else x.new_empty(0),
    )


@torch.library.register_fake('timm_stochdepth::convolution_backward')
def _(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        has_bias: bool,
        stride: List[int],
        padding: List[int],
        dilation: List[int],
        groups: int,
) -> Tuple[Tensor, Tensor, Tensor]:
    return _empty(x.shape, x), _empty(weight.shape, weight), x.new_empty(weight.shape[0] if has_bias else 0)


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.args = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = torch.ops.timm_stochdepth.convolution_backward(
        grad, x, weight, ctx.has_bias, *ctx.args)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None, None, None, None


torch.library.register_autograd('timm_stochdepth::convolution', _backward, setup_context=_setup_context)


def _values(value: Union[int, Sequence[int]], num_dims: int) -> List[int]:
    return [value] * num_dims if isinstance(value, int) else list(value)


def _convolve(
        input: Tensor,
        weight: Tensor,
        bias: Optional[Tensor] = None,
        stride: Union[int, Sequence[int]] = 1,
        padding: Union[int, str, Sequence[int]] = 0,
        dilation: Union[int, Sequence[int]] = 1,
        groups: int = 1,
) -> Tensor:
    """A convolution with the arguments of PyTorch's, and its casts under autocast."""
    device_type = input.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if padding == 'same':
        reach = [d * (k - 1) for k, d in zip(weight.shape[2:], _values(dilation, weight.ndim - 2))]
        input = nn.functional.pad(input, [p for r in reversed(reach) for p in (r // 2, r - r // 2)])
    padding = 0 if isinstance(padding, str) else padding
    lists = [_values(value, weight.ndim - 2) for value in (stride, padding, dilation)]
    y: Tensor = torch.ops.timm_stochdepth.convolution(input, weight, bias, *lists, groups)
    return y


class _KnownLayout(TorchFunctionMode):

    def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        return (_convolve if func in _CONVOLUTIONS else func)(*args, **(kwargs or {}))


def known_layout(block: nn.Module) -> ContextManager[Any]:
    """Context in which the convolutions of a block have results of a known memory format."""
    # only where there are some: within a checkpoint the compiler takes the mode for a side effect
    has_convolution = any(isinstance(m, _ConvNd) for m in block.modules())
    return _KnownLayout() if has_convolution else nullcontext()
