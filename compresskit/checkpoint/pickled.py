"""A pickle as ``torch.save`` writes it, read as data: no class or function that it names is ever imported or called.

Every global that a checkpoint of tensors needs stands for a recorder of ours; a handful of harmless training leftovers
(``argparse.Namespace``, numpy scalars …) become empty placeholders; anything else is refused by name.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

from compresskit.checkpoint.archive import WAY_OUT
from compresskit.checkpoint.region import ITEM_SIZE
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

    def __setstate__(self, _: object) -> None:
        raise TypeError("not changeable")


@dataclass(frozen=True)
class PickledTensor:
    """A tensor that the pickle describes; its values lie outside the pickle."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def __setstate__(self, _: object) -> None:
        raise TypeError("not changeable")


class Mapping(dict[str, Any]):
    """Stands for ``OrderedDict``; its attributes (``_metadata``) are dropped."""

    __slots__ = ()

    def __setstate__(self, _: object) -> None:
        """Any state."""


class Leftover:
    """Stands for an object that is no tensor; takes whatever the pickle does to it, and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: object, **__: object) -> Leftover:
        """Any arguments."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Any state."""


class _Recorder:
    """A callable that a pickle can't alter: it has no attributes to set."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("not changeable")

    def __setstate__(self, state: object) -> None:
        raise TypeError("not changeable")

    def __call__(self, *args: Any) -> object:
        """What the pickle's call stands for."""
        return _CALLS[self._name](*args)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Dtype:
    name: str

    def __setstate__(self, state: object) -> None:
        raise TypeError("not changeable")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> PickledTensor:
    metadata = rest[2] if len(rest) > 2 else None
    return _checked(storage, offset, shape, strides, None, metadata)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> Any:
    return _checked(storage, offset, shape, strides, dtype, rest[0] if rest else None)


def _checked(storage: Any, offset: Any, shape: Any, strides: Any, dtype: Any, metadata: Any) -> PickledTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError("a tensor is not described by storage, shape and strides")
    if any(type(n) is not int for n in (offset, *shape, *strides)):
        raise TypeError("a tensor's shape is not of whole numbers")
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        raise InputError("it holds a conjugated or negated view", "save tensor.resolve_conj().resolve_neg()")
    return PickledTensor(storage, offset, shape, strides, dtype.name if isinstance(dtype, _Dtype) else storage.dtype)


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, PickledTensor):
        raise TypeError("a parameter is not made of a tensor")
    return data


def _encode(text: Any, _: Any = "latin1") -> bytes:
    return str(text).encode("latin1")


_CALLS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": lambda sizes=(): tuple(sizes),
    "torch.device": lambda *_: Leftover(),
    "_codecs.encode": _encode,
    "collections.defaultdict": lambda *_: {},
    "builtins.complex": lambda real=0.0, imag=0.0: complex(float(real), float(imag)),
}
_TYPES: dict[str, type] = {
    "collections.OrderedDict": Mapping,
    "collections.Counter": Mapping,
    "builtins.set": set,
    "builtins.list": list,
    "builtins.dict": dict,
    "builtins.int": int,
    "builtins.float": float,
    "builtins.str": str,
    "builtins.bool": bool,
    "builtins.tuple": tuple,
}


class _Reader(pickle.Unpickler):
    """Python's unpickler with its two doors closed: globals and persistent ids give our own objects only."""

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for a global, or a refusal by name."""
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full in _TYPES:
            return _TYPES[full]
        if full in _CALLS:
            return _Recorder(full)
        if full in _LEFTOVERS:
            return Leftover
        if module in ("torch", "torch.cuda", "torch.storage"):
            if name in _STORAGES:
                return _Dtype(_STORAGES[name])
            if name in ITEM_SIZE:
                return _Dtype(name)
        if full in _UNSUPPORTED:
            raise InputError(f"it holds {_UNSUPPORTED[full]}, which is not supported", "save dense tensors")
        raise InputError(f"its pickle asks for '{full}', which is code and not data; nothing was run", WAY_OUT)

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a persistent id stands for."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Dtype):
            raise TypeError("an outside reference that is no storage")
        key, count, view = pid[2], pid[4], pid[5] if len(pid) > 5 else None
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise TypeError("a storage without a name and a size")
        if view is None:
            return Storage(key, pid[1].name, count)
        _, begin, size = view
        if type(begin) is not int or type(size) is not int or begin < 0 or size < 0 or begin + size > count:
            raise TypeError("a view beyond its storage")
        return Storage(key, pid[1].name, size, begin)


def read_pickle(file: BinaryIO) -> Any:
    """Read one pickle from the file's position.

    Raises:
        InputError: Damaged, or it names anything but tensors and plain data. The message has no file name.
    """
    begin = file.tell()
    try:
        _scan(file)
        end = file.tell()
        file.seek(begin)
        content = file.read(end - begin)
        return _Reader(io.BytesIO(content), encoding="utf-8").load()
    except InputError as error:
        file.seek(begin)
        if b"torch.nn.modules" in file.read(1 << 24):
            raise InputError("it is a whole pickled model, which is code; weights were expected", WAY_OUT) from error
        raise
    except Exception as error:  # a damaged pickle can raise nearly every kind
        raise InputError(f"its pickle is damaged ({error})", "get the file again") from error


def _scan(file: BinaryIO) -> None:
    """Walk the opcodes without running them: all well formed, and no memo slot far beyond the count of opcodes.

    Python's unpickler allocates its memo up to the highest slot: five bytes could ask for 64 GB.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > count:
            raise ValueError("a memo slot out of order")
