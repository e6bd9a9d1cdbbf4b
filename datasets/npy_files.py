"""Lists of integers in .npy files, also in arrays of objects, which NumPy stores as a pickle.

Unpickling runs what a file asks for. Here nothing is unpickled: _PickleReader knows the operations that lists, tuples,
integers, texts and arrays of these consist of, builds nothing else, and calls nothing that a file names.
"""

import math
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.files import read_regular

MAX_BYTES = 1 << 26
INTEGERS = re.compile("[<>|=][iu][1248]")
ITEM_TYPE = re.compile("O8?|[iu][1248]")
HEADER = re.compile(  # magic, version and length, then a dictionary; Python 2 writes numbers such as 2L
    rb"\x93NUMPY(?:\x01\x00..|[\x02\x03]\x00....)\{'descr': '([!-&(-~]{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9L, ]*)\),? *\} *\n",
    re.DOTALL,
)
# What NumPy's arrays name in a pickle; NumPy 1 writes numpy.core where NumPy 2 writes numpy._core.
RECONSTRUCT, SCALAR = "numpy._core.multiarray _reconstruct", "numpy._core.multiarray scalar"
DTYPE, NDARRAY, ENCODE = "numpy dtype", "numpy ndarray", "_codecs encode"
VALUES = set(  # operations that state an integer or a text
    "INT LONG BININT BININT1 BININT2 LONG1 LONG4 SHORT_BINUNICODE BINUNICODE UNICODE SHORT_BINSTRING BINSTRING STRING "
    "SHORT_BINBYTES BINBYTES".split()
)
CONSTANTS = {"EMPTY_TUPLE": (), "NONE": None, "NEWTRUE": True, "NEWFALSE": False}
MARK = object()


def read_npy(path: Path) -> list[Any]:
    """The items of an array of integers or of objects; of an array of two dimensions, its rows.

    Objects are integers, and lists, tuples and arrays (here: flat lists) of such. Raises InputError if the file
    cannot be read, or holds anything else.
    """
    try:
        data = read_regular(path, MAX_BYTES)
        header = HEADER.match(data)
        if not header:
            raise ValueError("it does not begin as a .npy file of an array does")
        code, by_columns, lengths = (group.decode() for group in header.groups())
        array = _Array()
        if code == "|O":
            array = _PickleReader(data[header.end() :]).read()
        else:
            shape = tuple(map(int, re.findall("[0-9]+", lengths)))
            array.fill(shape, by_columns == "True", code, data[header.end() :])
        return array.rows()
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(f"Cannot read {path}: {error or 'it is damaged'}.") from None


class _Name(str):
    """The name of what unpickling would call or build. Here it is compared, and never looked up."""


class _Type:
    """The type of an array's items, such as "<i8"; "O": objects."""

    code = ""

    def fill(self, state: tuple[Any, ...]) -> None:
        """Sets the order of bytes, which follows the type in a pickle. Raises ValueError for another state."""
        if state[1] not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise ValueError("items that consist of parts")
        self.code = state[1] + self.code


class _Array(list[Any]):
    """The items of an array, in order of its shape."""

    shape: tuple[int, ...] = (0,)

    def fill(self, shape: tuple[int, ...], by_columns: bool, code: str, content: Any) -> None:
        """Sets shape and items. code: of their type; content: a list of objects, or the bytes of integers.

        Raises ValueError if they do not fit.
        """
        if not all(type(length) is int for length in shape):
            raise ValueError("lengths that are no integers")
        if by_columns and len(shape) > 1:
            raise ValueError("its columns are stored one after the other")
        if "O" in code and isinstance(content, list):
            self[:] = content
        elif INTEGERS.fullmatch(code):
            self[:] = np.frombuffer(content, np.dtype(code)).tolist()
        else:
            raise ValueError(f"items of the type {code}")
        self.shape = tuple(shape)
        if math.prod(self.shape) != len(self):
            raise ValueError(f"{len(self)} items for the shape {self.shape}")

    def rows(self) -> list[Any]:
        """The items; of an array of two dimensions, a list for each row."""
        if len(self.shape) != 2 or not self:  # of no columns, there may be any number of rows
            return self
        count, width = self.shape
        return [self[i * width : (i + 1) * width] for i in range(count)]


class _PickleReader:
    """Reads a pickle of lists, tuples, integers, texts and arrays of these, protocols 0 to 4.

    Its methods raise LookupError, TypeError, ValueError, ArithmeticError or AttributeError for any other content. What
    is built is at most as large as the pickle: lists refer to what they hold, bytes are decoded once, and an array's
    items are copied once.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.left = data, len(data)  # bytes to decode, or items to copy, at most
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> _Array:
        """The array that the pickle holds."""
        for operation, argument, _ in pickletools.genops(self.data):
            if operation.name == "STOP":
                break
            self._do(operation.name, argument)
        array = self.stack.pop()
        if not isinstance(array, _Array):
            raise ValueError("no array")
        return array

    def _do(self, name: str, argument: Any) -> None:
        """An operation of the pickle, as pickletools names it."""
        stack = self.stack
        if name in VALUES:
            if isinstance(argument, int) and argument.bit_length() > 64:
                raise ValueError("an integer of more than 64 bits")
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(MARK)
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_to_mark() if name == "APPENDS" else self._pop(1)
            if not isinstance(stack[-1], list):
                raise ValueError("items of what is no list")
            stack[-1].extend(items)
        elif name in ("TUPLE", "LIST"):
            items = self._pop_to_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1]))))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            text = argument if name == "GLOBAL" else " ".join(self._pop(2))
            stack.append(_Name(text.replace("numpy.core.", "numpy._core.")))
        elif name == "REDUCE":
            stack.append(self._reduced(*self._pop(2)))
        elif name == "BUILD":
            (state,) = self._pop(1)
            self._fill(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the operation {name} of a pickle, of which no array of integers consists")

    def _pop(self, count: int) -> list[Any]:
        """Takes the last values. Raises LookupError if there are fewer."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def _pop_to_mark(self) -> list[Any]:
        """Takes the values above the last mark, and the mark."""
        values = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    def _reduced(self, name: Any, arguments: tuple[Any, ...]) -> Any:
        """What unpickling would call a function for: an empty array, a type, an integer, or bytes."""
        function = str(name) if isinstance(name, _Name) else ""
        if function == RECONSTRUCT and isinstance(arguments[0], _Name) and arguments[0] == NDARRAY:
            return _Array()
        if function == DTYPE and ITEM_TYPE.fullmatch(arguments[0]):
            kind = _Type()
            kind.code = arguments[0].removesuffix("8") if arguments[0][0] == "O" else arguments[0]
            return kind
        if function == SCALAR:
            number = _Array()
            number.fill((), False, arguments[0].code, self._bytes(arguments[1]))
            return number[0]
        if function == ENCODE and isinstance(arguments[0], str) and arguments[1] == "latin1":
            return self._bytes(arguments[0])
        raise ValueError(f"{function or 'something'}, of which no array of integers consists")

    def _fill(self, built: Any, state: tuple[Any, ...]) -> None:
        if isinstance(built, _Array) and len(state) == 5 and isinstance(state[2], _Type):
            _, shape, kind, by_columns, content = state
            if isinstance(content, list):  # which may be referred to again and again, and is copied each time
                self._spend(len(content))
            else:
                content = self._bytes(content)
            built.fill(shape, by_columns, kind.code, content)
        elif isinstance(built, _Type):
            built.fill(state)
        else:
            raise ValueError("a state of what is no array")

    def _bytes(self, content: Any) -> bytes:
        """Bytes, which Python 2 writes as a text."""
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(content, bytes):
            raise ValueError("items that are no bytes")
        self._spend(len(content))
        return content

    def _spend(self, count: int) -> None:
        """Raises ValueError once more is built than the pickle has bytes."""
        self.left -= count
        if self.left < 0:
            raise ValueError("more items than it has bytes")
