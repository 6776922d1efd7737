"""What an example is where it is no image: an array of any shape, or several with names, such as ids and their mask.

Several parts, and whole numbers, go through episodes as one array of real numbers, and are taken apart where a network
is called. No torch at run time.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

PART = re.compile(r"(?:([A-Za-z_]\w*):)?(float|int|bool):([1-9]\d*(?:x[1-9]\d*)*)")
KINDS = {"float": "fiub", "int": "iu", "bool": "b"}
"""Of a part -> the kinds of numpy arrays that it takes."""
LARGEST_WHOLE = 2**24
"""float32, as which whole numbers go through episodes, has all of them up to this one."""
EXAMPLES_AT_ONCE = 4096
KEPT_TYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
"""Which torch gathers as they are; others are widened to 64 bits."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """An array of each example."""

    name: str
    """The argument of the network's forward; empty: the next one by position."""
    kind: str
    """float, int or bool: the network gets its own number format, int64 or bool."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Inputs:
    """The key `input_shape`, read. n examples."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, given: Sequence[int | str]) -> "Inputs":
        """Read [6, 128], one array of real numbers, or ["ids:int:24", "mask:bool:24"].

        Raises:
            ValueError: it is neither; the text says what is allowed.
        """
        if all(isinstance(entry, int) for entry in given):
            return cls((Part("", "float", tuple(given)),))
        found = [PART.fullmatch(str(entry)) for entry in given]
        parts = [Part(m[1] or "", m[2], tuple(map(int, m[3].split("x")))) for m in found if m]
        names = [part.name for part in parts if part.name]
        if len(parts) < len(given) or len(set(names)) < len(names) or len(names) not in (0, len(parts)):
            raise ValueError(
                "the sides of one array, as [6, 128], or a text for each of several parts, [NAME:]KIND:SIDES "
                'as ["ids:int:24", "mask:bool:24"], KIND being float, int or bool, all with a name of their own or none'
            )
        return cls(tuple(parts))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example as it goes through episodes."""
        return self.parts[0].shape if len(self.parts) == 1 else (sum(math.prod(part.shape) for part in self.parts),)

    @property
    def are_numbers(self) -> bool:
        """Whether an example is one array of real numbers, whose distances mean something."""
        return [part.kind for part in self.parts] == ["float"]

    def by_name(self, values: Sequence[Any]) -> Any:
        """Return one value for each part as people hold them: alone, in a tuple, or by name."""
        if self.parts[0].name:
            return dict(zip((part.name for part in self.parts), values, strict=True))
        return values[0] if len(self.parts) == 1 else tuple(values)

    def joined(self, given: Any) -> np.ndarray:
        """Check the arrays of n examples and bring them to one, (n, *shape); a single one is not copied.

        Args:
            given: an array (n, ...), a tuple of them, or name -> array, as `by_name`.
        Raises:
            ValueError: they do not fit, hold what is not finite, or are whole numbers that float32 does not have.
        """
        arrays = [_checked(part, array) for part, array in zip(self.parts, self._each(given), strict=True)]
        counts = [len(array) for array in arrays]
        if len(set(counts)) > 1:
            raise ValueError(f"has parts of {', '.join(map(str, counts))} examples, which must be the same ones")
        if len(arrays) == 1:
            return arrays[0]
        together = np.result_type(*arrays, np.int32)
        return np.concatenate([array.reshape(len(array), -1).astype(together) for array in arrays], axis=1)

    def _each(self, given: Any) -> list[Any]:
        if len(self.parts) == 1 and not self.parts[0].name:
            return [given]
        if self.parts[0].name:
            names = [part.name for part in self.parts]
            if not isinstance(given, Mapping) or set(given) != set(names):
                seen = f"has {', '.join(map(str, given))}" if isinstance(given, Mapping) else f"is {_kind_of(given)}"
                raise ValueError(f"{seen}, but must be a dict of {', '.join(names)}, as input_shape says")
            return [given[name] for name in names]
        if not isinstance(given, tuple | list) or len(given) != len(self.parts):
            raise ValueError(f"is {_kind_of(given)}, but must be a tuple of {len(self.parts)} arrays, by input_shape")
        return list(given)

    def arguments(self, examples: "Tensor") -> Arguments:
        """Take examples (n, *shape) apart: the arguments, by position and by name, with which a network is called."""
        pieces = [examples]
        if len(self.parts) > 1:
            pieces = examples.split([math.prod(part.shape) for part in self.parts], dim=1)
        values = []
        for part, piece in zip(self.parts, pieces, strict=True):
            whole = piece.reshape(len(piece), *part.shape)
            values.append(whole if part.kind == "float" else whole.long() if part.kind == "int" else whole.bool())
        return ((), self.by_name(values)) if self.parts[0].name else (tuple(values), {})

    def made_up(self, n: int) -> np.ndarray:
        """Return examples, float64 (n, *shape), that any network takes: normal numbers, ids 0 and 1, nothing masked."""
        draw = np.random.default_rng(0)
        makers = {"float": draw.standard_normal, "int": lambda shape: draw.integers(0, 2, shape), "bool": np.ones}
        made = [makers[part.kind]((n, math.prod(part.shape))).astype(np.float64) for part in self.parts]
        return np.concatenate(made, axis=1).reshape(n, *self.shape)


def in_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Return an array some examples at a time: of a mapped one no more is in memory."""
    return (array[start : start + EXAMPLES_AT_ONCE] for start in range(0, len(array), EXAMPLES_AT_ONCE))


def refuse_masked(given: Any, what: str, error: type[Exception] = ValueError) -> None:
    """Refuse an array of `numpy.ma`, or a list of them, whose mask hides something: elsewhere the mask would be lost.

    Raises:
        error: "`what` masked values; ...".
    """
    if any(map(np.ma.is_masked, given if isinstance(given, list | tuple) else [given])):
        raise error(f"{what} masked values; fill them, array.filled(value), or drop these examples")


def as_array(given: Any, what: str, error: type[Exception] = ValueError) -> np.ndarray:
    """Return an array, a torch tensor or a list of them as one array: of tensors the numbers, wherever they are.

    Raises:
        error: as `refuse_masked`.
    """
    refuse_masked(given, what, error)
    if isinstance(given, list | tuple):
        return np.asarray([_numbers_of(one) for one in given])
    return np.asarray(_numbers_of(given))


def _numbers_of(one: Any) -> Any:
    return one.detach().cpu().numpy() if hasattr(one, "detach") else one


def fits_float32(array: np.ndarray) -> bool:
    """Return whether all numbers are finite, and in float32 too."""
    largest = float(np.finfo(np.float32).max)
    return all(-largest <= float(block.min()) and float(block.max()) <= largest for block in in_blocks(array))


def _kind_of(given: Any) -> str:
    return f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else f"a {type(given).__name__}"


def _checked(part: Part, given: Any) -> np.ndarray:
    """Return the array of one part, after all that can be wrong with it has been asked."""
    own = f'"{part.name}" ' if part.name else ""
    if isinstance(given, list | tuple):
        lengths = sorted({np.shape(example) for example in given})
        if len(lengths) > 1:
            raise ValueError(
                f"{own}has examples of {len(lengths)} shapes, such as {lengths[0]} and {lengths[-1]}; bring sequences "
                "to one length and give a mask beside them: docs/any_modality.md"
            )
    array = as_array(given, f"{own}holds")
    if array.dtype.kind not in KINDS[part.kind] or array.shape[1:] != part.shape or array.ndim == 0:
        sides = ", ".join(map(str, part.shape))
        kinds = {"float": "numbers", "int": "whole numbers", "bool": "true and false"}[part.kind]
        raise ValueError(
            f"{own}is {_kind_of(array)}, but must be an array (n, {sides}) of {kinds}, as input_shape says"
        )
    if array.dtype.kind == "f" and not fits_float32(array):
        raise ValueError(
            f"{own}holds NaN or infinity, or is too large for float32; replace them or leave these examples out"
        )
    is_wide = array.dtype.kind in "iu" and array.dtype.itemsize > 3
    if is_wide and any(max(int(block.max()), -int(block.min())) > LARGEST_WHOLE for block in in_blocks(array)):
        raise ValueError(
            f"{own}holds whole numbers above {LARGEST_WHOLE:,}, which float32 has not all of; renumber them"
        )
    kept = array.dtype.name in KEPT_TYPES and array.dtype.isnative
    return array if kept else array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
