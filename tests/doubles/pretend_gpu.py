"""A GPU made of the CPU: it computes the same, and is as strict about where a tensor lies.

A tensor on it keeps its values on the CPU and is wrapped; an operation over wrapped and plain tensors is an error
unless CUDA would allow it. That finds the inputs that somebody forgot to move, on a machine without a GPU. It says
nothing of kernels, precision, memory or speed, and nothing on it can be saved.

PyTorch's interface for devices written in Python is experimental (torch 2.13) and belongs to the whole process: use it
in one of its own, imported before the first backward pass. An error within a backward pass aborts that process.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
_INDEXING = ("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default", "aten._index_put_impl_.default")
_COPYING = ("aten._to_copy.default", "aten.copy_.default")


class DeviceError(RuntimeError):
    """Tensors of the GPU and the CPU met in one operation."""


class OnGpu(torch.Tensor):
    """A tensor of the pretended GPU."""

    values: torch.Tensor  # on the CPU

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnGpu":
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=f"{NAME}:0",
        )
        wrapped.values = values
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.values.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.values!r})"


@contextlib.contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """A device that tensors and modules can be moved to, and made on, within the context."""
    # Inference tensors cannot be wrapped.
    entry = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    torch.inference_mode.__enter__, torch.inference_mode.__exit__ = _enter_no_grad, _leave_no_grad
    try:
        with _MovedWhenMade(), _Dispatch():
            yield torch.device(NAME, 0)
    finally:
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = entry


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    tensors: list[torch.Tensor] = []
    tree_map(lambda value: tensors.append(value) if isinstance(value, torch.Tensor) else None, (args, kwargs))
    result = func(*tree_map(_unwrapped, args), **tree_map(_unwrapped, kwargs))
    if not isinstance(result, torch.Tensor | list | tuple) or not _is_on_gpu(str(func), tensors, kwargs):
        return result
    # What is changed in place is given back, not wrapped anew.
    wrapped = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, OnGpu)}
    return tree_map(lambda value: wrapped[id(value)] if id(value) in wrapped else _wrapped(value), result)


def _is_on_gpu(name: str, tensors: list[torch.Tensor], kwargs: Any) -> bool:
    """Where the result of an operation lies; DeviceError where CUDA would refuse it."""
    on_gpu = [isinstance(tensor, OnGpu) for tensor in tensors]
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]).type == NAME
    if name in _COPYING or (name in _INDEXING and on_gpu[0]):
        return on_gpu[0]
    if any(on_gpu):
        elsewhere = [tensor for tensor, there in zip(tensors, on_gpu, strict=True) if not there and tensor.dim() > 0]
        if elsewhere:
            shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in elsewhere)
            raise DeviceError(f"{name}: {shapes} on the CPU, the others on the GPU")
    return any(on_gpu)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.values if isinstance(value, OnGpu) else value


def _wrapped(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnGpu) else value


class _Dispatch(TorchDispatchMode):
    """What makes tensors on a device has none yet that would say so."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _MovedWhenMade(TorchFunctionMode):
    """`torch.tensor` fills a new tensor below the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func in (torch.tensor, torch.as_tensor) else None
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


def _enter_no_grad(mode: Any) -> None:
    mode.instead = torch.no_grad()
    mode.instead.__enter__()


def _leave_no_grad(mode: Any, *error: Any) -> None:
    mode.instead.__exit__(*error)


class _Module(_DummyBackendModule):
    """What `torch.autocast`, `torch.manual_seed` and checkpointing ask of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **settings: Any) -> torch.Tensor:
    return OnGpu(torch.empty_strided(size, stride, dtype=dtype))


def _empty(size: Any, *, dtype: Any = None, **settings: Any) -> torch.Tensor:
    return OnGpu(torch.empty(size, dtype=dtype))


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _unwrapped(target).copy_(_unwrapped(source))
    return target


_setup_privateuseone_for_python_backend(NAME, _Module())
# For what comes from below the dispatcher, such as an index that is a list.
_KERNELS = torch.library.Library("aten", "IMPL")
_KERNELS.impl("empty_strided", _empty_strided, "PrivateUse1")
_KERNELS.impl("empty.memory_format", _empty, "PrivateUse1")
_KERNELS.impl("_copy_from", _copy_from, "PrivateUse1")
