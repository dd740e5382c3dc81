"""A pickle as ``torch.save`` writes it, read as data: no class or function that it names is ever imported or called.

Every global that a checkpoint of tensors needs stands for a recorder of ours; a handful of harmless training leftovers
(``argparse.Namespace``, numpy scalars …) become empty placeholders; anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from compresskit.checkpoint.archive import WAY_OUT
from compresskit.checkpoint.pickle_machine import Budget, Call, Leftover, Machine, put
from compresskit.checkpoint.region import ITEM_SIZE, MAX_DIMS, SIZES
from compresskit.errors import InputError

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_LEFTOVERS = {
    "argparse.Namespace", "types.SimpleNamespace", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath",
}  # fmt: skip
_UNSUPPORTED = {
    "torch._utils._rebuild_qtensor": "a tensor of torch's own quantization",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass",
    "torch._tensor._rebuild_from_type_v2": "a tensor subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor saved from a TPU",
}


@dataclass(frozen=True)
class Storage:
    """A storage that the pickle names: ``count`` elements of ``dtype`` under ``key``, from element ``begin``."""

    key: str
    dtype: str
    count: int
    begin: int = 0


@dataclass(frozen=True)
class PickledTensor:
    """A tensor that the pickle describes; its values lie outside the pickle."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class _Dtype:
    name: str


def _tensor(_: Budget, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> PickledTensor:
    return _checked(storage, offset, shape, strides, None, rest[2] if len(rest) > 2 else None)


def _tensor_v3(
    _: Budget, storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> PickledTensor:
    return _checked(storage, offset, shape, strides, dtype, rest[0] if rest else None)


def _checked(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any, metadata: Any) -> PickledTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError("a tensor is not described by storage, shape and strides")
    if len(shape) > MAX_DIMS or len(strides) > MAX_DIMS:
        raise ValueError(f"a tensor has more than {MAX_DIMS} axes")
    if any(type(n) is not int or n not in SIZES for n in (offset, *shape, *strides)):
        raise TypeError("a tensor's shape, strides and offset make no sense: sizes from 0 to 2^63 were expected")
    if isinstance(metadata, dict) and any(metadata.get(name) not in (None, False) for name in ("conj", "neg")):
        raise InputError("it holds a conjugated or negated view", "save tensor.resolve_conj().resolve_neg()")
    return PickledTensor(storage, offset, shape, strides, dtype.name if isinstance(dtype, _Dtype) else storage.dtype)


def _parameter(_: Budget, data: Any, *__: Any) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise TypeError("a parameter is not made of a tensor")
    return data


def _encode(budget: Budget, text: Any, *_: Any) -> bytes:
    if type(text) is not str:
        raise TypeError("something else than text is encoded")
    budget.text(text)
    return text.encode("latin1")


def _forgotten(_: Budget, *__: Any) -> Leftover:
    return Leftover()


def _mapping(budget: Budget, items: Any = ()) -> dict[Any, Any]:
    """A dictionary of pairs, as Python 2 saved an ``OrderedDict``, or of another one's entries."""
    if type(items) not in (dict, list, tuple):
        raise TypeError("a mapping is made of something else than pairs")
    budget.steps_of(len(items))
    out: dict[Any, Any] = {}
    for pair in items.items() if type(items) is dict else items:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise TypeError("a mapping is made of something else than pairs")
        put(budget, out, *pair)
    return out


def _set(budget: Budget, items: Any = ()) -> list[Any]:
    """A set stays a list, as nothing is looked up in it; of what could be shared it holds nothing."""
    found = _sequence(budget, items)
    if any(isinstance(item, (tuple, list, dict)) for item in found):
        raise TypeError("a set of something else than single values")
    return found


def _sequence(budget: Budget, items: Any = ()) -> list[Any]:
    if type(items) not in (list, tuple):
        raise TypeError("a sequence is made of something else than one")
    budget.steps_of(len(items))
    return list(items)


def _size(budget: Budget, items: Any = ()) -> tuple[Any, ...]:
    return tuple(_sequence(budget, items))


def _text(_: Budget, value: Any = "") -> str:
    if type(value) is not str:
        raise TypeError("text is made of something else")
    return value


def _number(_: Budget, value: Any = 0, *__: Any) -> Any:
    if type(value) not in (int, float, bool):
        raise TypeError("a number is made of something else")
    return value


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _forgotten,
    "_codecs.encode": _encode,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda budget, *_: _mapping(budget),
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _forgotten,
    "builtins.bytearray": _forgotten,
    "builtins.list": _sequence,
    "builtins.dict": _mapping,
    "builtins.tuple": _size,
    "builtins.str": _text,
    "builtins.int": _number,
    "builtins.float": _number,
    "builtins.bool": _number,
    "builtins.complex": _forgotten,
    **dict.fromkeys(_LEFTOVERS, _forgotten),
}


def _stand_in(module: str, name: str) -> Any:
    """What stands for a global, or a refusal by name."""
    full = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if full in _CALLS:
        return Call(full, _CALLS[full])
    if module in ("torch", "torch.cuda", "torch.storage"):
        if name in _STORAGES:
            return _Dtype(_STORAGES[name])
        if name in ITEM_SIZE:
            return _Dtype(name)
    if full in _UNSUPPORTED:
        raise InputError(f"it holds {_UNSUPPORTED[full]}, which is not supported", "save dense tensors")
    raise InputError(f"its pickle asks for '{full}', which is code and not data; nothing was run", WAY_OUT)


def _storage(pid: Any) -> Storage:
    """The storage that a persistent id stands for."""
    if not isinstance(pid, tuple) or len(pid) < 5 or type(pid[0]) is not str or pid[0] != "storage":
        raise TypeError("an outside reference that is no storage")
    dtype, key, count, view = pid[1], pid[2], pid[4], pid[5] if len(pid) > 5 else None
    if not isinstance(dtype, _Dtype) or type(key) is not str or type(count) is not int or count not in SIZES:
        raise TypeError("a storage without a kind, a name and a size")
    if view is None:
        return Storage(key, dtype.name, count)
    if type(view) is not tuple or len(view) != 3:
        raise TypeError("a view that is none")
    _, begin, size = view
    if type(begin) is not int or type(size) is not int or begin < 0 or size < 0 or begin + size > count:
        raise TypeError("a view beyond its storage")
    return Storage(key, dtype.name, size, begin)


def read_pickle(file: BinaryIO) -> Any:
    """Read one pickle from the file's position.

    Raises:
        InputError: Damaged, too much work, or it names anything but tensors and plain data. The message has no file
            name.
    """
    begin = file.tell()
    try:
        return Machine(_stand_in, _storage).run(file)
    except InputError as error:
        file.seek(begin)
        if b"torch.nn.modules" in file.read(1 << 24):
            raise InputError("it is a whole pickled model, which is code; weights were expected", WAY_OUT) from error
        raise
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly every kind
        raise InputError(f"its pickle is damaged ({error})", "get the file again") from error
