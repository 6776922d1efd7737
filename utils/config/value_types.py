"""Types of the values of config keys: names that are registered, lists, and what a key means beside another one."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import Field
from pydantic_core import PydanticCustomError, core_schema

from utils.registry import BUILT_IN_BACKBONES
from utils.registry import choices as registered

AugmentationName = Literal[
    "random_resized_crop", "pad_and_crop", "color_jitter", "flip", "enlarge", "resize", "crop", "color"
]
DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.\- ]{1,200}$")]
AtLeastOne = Annotated[int, Field(ge=1)]
AtLeastTwo = Annotated[int, Field(ge=2)]


class NameOf(str):
    """The type of a key whose values are the names that are registered, and `more`; a plain str all the same."""

    kind: str
    more: tuple[str, ...] = ()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of today: a plugin adds to them."""
        return (*registered.choices(cls.kind), *cls.more)

    @classmethod
    def __get_pydantic_core_schema__(cls, annotation: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls._known, core_schema.str_schema(strict=True))

    @classmethod
    def _known(cls, name: str) -> str:
        if name in cls.names() or name == registered.GIVEN:
            return name
        *others, last = map(repr, cls.names())
        raise PydanticCustomError(
            "unknown_name", "Input should be {allowed}", {"allowed": f"{', '.join(others)} or {last}"}
        )


def name_of(kind: str, *more: str) -> Any:
    """Return the type of a key whose values are the registered names of a kind, and these."""
    return type("NameOf", (NameOf,), {"kind": kind, "more": more})


def as_list(value: Any) -> tuple[Any, ...]:
    """Return the values of a key that takes one or a list, each once."""
    return tuple(dict.fromkeys(value)) if isinstance(value, tuple | list) else (value,)


class ReadWith(NamedTuple):
    """Marks a key that means something beside some values of another key alone.

    Args:
        is_read: of a value of the other key; None: whether the choice, or the network, of this name reads the key.
        refused: whether it is an error to set the key where it means nothing; else it is left alone, since configs of
            the reference have it anyway.
    """

    other: str
    is_read: Callable[[Any], bool] | None = None
    refused: bool = False

    def holds(self, key: str, value: Any) -> bool:
        """Return whether `key` is read beside this value of the other one; beside a name that is not known, it may."""
        if self.is_read is not None:
            return any(map(self.is_read, as_list(value)))
        reads = (
            BUILT_IN_BACKBONES if self.other == "backbone"
            else {name: each.reads.values() for name, each in registered.choices(self.other).items()}
        )  # fmt: skip
        # What a Python program gives is made without any key; a name that is not known here may be a plugin's.
        unknown = {"none": (), registered.GIVEN: ()}
        return any(key in reads.get(name, unknown.get(name, (key,))) for name in as_list(value))


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values that are written out in a type, wherever in it, such as "auto" in `float | Literal["auto"]`."""
    if isinstance(annotation, type) and issubclass(annotation, NameOf):
        return annotation.names()
    parts = get_args(annotation)
    return parts if get_origin(annotation) is Literal else tuple(value for part in parts for value in choices(part))
