"""Training one network in several processes that share every batch: what they must agree on.

Every process holds the whole network, takes an equal part of each batch and makes the same decisions. So that they stay
alike, and alike to one process with the whole batch, gradients are averaged and batch norms use the whole batch's
statistics. Outside of such a group of processes everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_pre_hook

_Made = TypeVar("_Made")
_plain_batch_norm = F.batch_norm


def processes() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def wait_for_all() -> None:
    """Returns when every process is here."""
    if processes() > 1:
        dist.barrier()


def from_first(make: Callable[[], _Made]) -> _Made:
    """What the first process makes, in all of them: for what each would measure differently."""
    if processes() == 1:
        return make()
    made = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made)
    return cast(_Made, made[0])


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a figure over the processes, in floating point. Nothing is differentiated through it.

    A loss that divides by a count of its own batch (of pixels that are not void, say) must divide by this, or it would
    weigh a process with few of them like one with many.
    """
    mean = value.detach().to(torch.get_default_dtype(), copy=True)
    average([mean])
    return mean


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes, in place and in one message."""
    tensors = list(tensors)
    if processes() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= processes()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@contextmanager
def sharing_batches() -> Iterator[None]:
    """Inside, every optimizer steps along the mean of the processes' gradients and every batch norm normalises over
    all of their samples, whatever network or method they belong to.

    For losses that are means over samples these are the gradients of one process with the whole batch.
    """
    hook = register_optimizer_step_pre_hook(_average_gradients)
    F.batch_norm = _batch_norm  # PyTorch's own SyncBatchNorm runs on GPUs only and not in timm's normalisations
    try:
        yield
    finally:
        F.batch_norm = _plain_batch_norm
        hook.remove()


def _average_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    average(parameter.grad for parameter in parameters if parameter.grad is not None)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes. Each of their losses depends on it, so their gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        result = tensor.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        result = gradient.clone()
        dist.all_reduce(result)
        return result


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` over the samples of all processes; its gradients flow through all of them."""
    if not training:
        return _plain_batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = [axis for axis in range(input.ndim) if axis != 1]
    per_channel = [-1 if axis == 1 else 1 for axis in range(input.ndim)]
    count = processes() * input.numel() // input.shape[1]
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    mean = _Sum.apply(values.sum(axes)) / count
    centred = values - mean.view(per_channel)
    variance = _Sum.apply(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    output = centred * torch.rsqrt(variance + eps).view(per_channel)
    if weight is not None:
        output = output * weight.view(per_channel)
    if bias is not None:
        output = output + bias.view(per_channel)
    return output.to(input.dtype)
