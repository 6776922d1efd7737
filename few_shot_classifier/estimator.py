"""What scikit-learn expects of an estimator beside fit and predict, without needing scikit-learn.

The parameters of `__init__` are those of its signature, stored as they are given; `clone` keeps the meta-learned
initialisation and forgets what was fitted; pickling is refused.
"""

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from utils.config.messages import key_meant

try:
    from sklearn.exceptions import NotFittedError
except ModuleNotFoundError:

    class NotFittedError(ValueError, AttributeError):  # type: ignore[no-redef]
        """Used before `fit`."""


KEPT_BY_CLONE = ("initialisation_", "meta_config_")
"""What meta-learning leaves in an estimator; never changed in place, so clones share it."""


def with_parameters(defaults_of_today: Callable[[], dict[str, Any]]) -> Any:
    """Decorate a class: `__init__` takes these keywords and stores them; the signature shows those of the beginning."""

    def decorate(cls: type) -> type:
        def __init__(self: Any, **given: Any) -> None:
            defaults = defaults_of_today()
            unknown = [name for name in given if name not in defaults]
            if unknown:
                nearest = key_meant(unknown[0], defaults)
                hint = f'; did you mean "{nearest}"?' if nearest else ""
                raise TypeError(f'{cls.__name__} has no parameter "{unknown[0]}"{hint}')
            for name, default in defaults.items():
                setattr(self, name, given.get(name, default))

        keyword = inspect.Parameter.KEYWORD_ONLY
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [
            inspect.Parameter(name, keyword, default=default) for name, default in defaults_of_today().items()
        ]
        __init__.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
        __init__.__doc__ = "Store the parameters; nothing is checked or built before it is needed."
        cls.__init__ = __init__  # type: ignore[misc]
        cls.parameter_defaults = staticmethod(defaults_of_today)  # type: ignore[attr-defined]
        return cls

    return decorate


class Estimator:
    """The conventions; `with_parameters` gives a subclass its parameters."""

    parameter_defaults: Callable[[], dict[str, Any]]
    initialisation_: Any = None
    meta_config_: Any = None

    if TYPE_CHECKING:  # what `with_parameters` makes

        def __init__(self, **parameters: Any) -> None: ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return every parameter by name."""
        return {name: getattr(self, name, default) for name, default in self.parameter_defaults().items()}

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name; they count from the next `fit` or `meta_fit` on.

        Raises:
            ValueError: a name that is no parameter.
        """
        for name in params:
            if name not in self.parameter_defaults():
                nearest = key_meant(name, self.parameter_defaults())
                hint = f', did you mean "{nearest}"' if nearest else ""
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}{hint}; get_params() lists them"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def clone(self) -> Any:
        """Return an unfitted estimator with the same parameters and the same meta-learned initialisation."""
        # A network is a parameter: each clone gets its own, as scikit-learn does with everything that is no estimator.
        other = type(self)(**{name: copy.deepcopy(value) for name, value in self.get_params().items()})
        for name in KEPT_BY_CLONE:
            if getattr(self, name) is not None:
                setattr(other, name, getattr(self, name))
        return other

    __sklearn_clone__ = clone

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def check_is_fitted(self) -> None:
        """Raise NotFittedError before `fit`."""
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                f"This {type(self).__name__} is not fitted yet: call fit(images, labels) with a few examples of each "
                "class first"
            )

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            regressor_tags=None,
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(two_d_array=True, three_d_array=True),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = type(self)()
        vars(other).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse: a pickle can run anything when it is read.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"a {type(self).__name__} is not pickled, because reading a pickle can run anything; use save(path) and "
            "load(path), "
            "clone() for a copy, and n_jobs=1 where scikit-learn would send it to other processes"
        )

    def __repr__(self) -> str:
        defaults = self.parameter_defaults()
        changed = {name: value for name, value in self.get_params().items() if not _same(value, defaults[name])}
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in changed.items())})"


def _same(value: Any, default: Any) -> bool:
    return value is default or (
        type(value) is type(default) and isinstance(value, (str, int, float, tuple)) and value == default
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"<{type(value).__name__}>"
